// The videos of a batch play while they are seen, and are loaded no sooner.
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches; // then by hand alone
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    // a pause, or a file that is gone, ends the promise: the video's own controls show it
    if (isIntersecting) target.play().catch(() => {});
    else target.pause();
  }
});
if (!calm) document.querySelectorAll("video").forEach((video) => seen.observe(video));
