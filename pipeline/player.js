// The moving mesh of a report: it plays, turns and zooms. The elements are report.html's, the mesh
// is there as base64 of a .glb, and THREE is what three/build.sh makes. Times are seconds of the
// file's animation; a file without one stands still.

const FIELD_OF_VIEW = 30; // degrees, of the picture's height
const MARGIN = 1.1; // round the mesh
const STEP = Math.PI / 24; // that a key takes the camera round the mesh, radians
const ZOOM = 0.9; // that "+" brings the camera nearer: a share of its distance

const player = document.getElementById("player");
const part = (name) => player.querySelector(`[data-part="${name}"]`);
const canvas = part("canvas");
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches; // nothing moves by itself

show().catch((error) => end("failed", `The mesh can't be shown (${error.message}).`));

async function show() {
  const context = canvas.getContext("webgl2", { antialias: true });
  if (!context) {
    end("failed", "This browser shows no WebGL 2, which the turning mesh needs.");
    return;
  }
  const file = await new THREE.GLTFLoader().parseAsync(bytesOf(part("glb").textContent), "");
  const motion = new Motion(file);
  const view = new View(context, file.scene, motion);
  offerFile();
  connectTime(motion, view);
  connectLook(view);
  connectKeys(motion, view);
  run(motion, view);
  end(motion.duration > 0 ? "moves" : "still", "");
}

// What report.html's style and whoever waits for the mesh go by, and a line for a person.
function end(state, says) {
  player.dataset.state = state;
  part("says").textContent = says;
}

function bytesOf(base64) {
  const letters = atob(base64.trim());
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes.buffer;
}

// The file can be had from the page, wherever that was sent alone.
function offerFile() {
  const link = part("save");
  link.addEventListener("click", () => {
    const glb = new Blob([bytesOf(part("glb").textContent)], { type: "model/gltf-binary" });
    link.href = URL.createObjectURL(glb);
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
}

// The animation of a file, at the time that it is told.
class Motion {
  constructor(file) {
    const [clip] = file.animations;
    this.duration = clip ? clip.duration : 0;
    this.time = 0;
    this.playing = false;
    // of a morph track each frame is a key; frames that are switched have a key where they begin
    const keys = clip ? clip.tracks.flatMap((track) => [...track.times]) : [0];
    this.frames = [...new Set(keys)].sort((a, b) => a - b);
    if (clip) {
      this.mixer = new THREE.AnimationMixer(file.scene);
      this.action = this.mixer.clipAction(clip).play();
      this.action.paused = true; // `at` says the time, no clock does
    }
  }

  at(time) {
    this.time = time;
    if (this.mixer) {
      this.action.time = time;
      this.mixer.update(0);
    }
  }

  // A frame on or back; from the end it goes on at the start.
  step(by) {
    const before = this.frames.findLastIndex((key) => key <= this.time + 1e-4);
    const next = before + by;
    this.at(this.frames.at(next % this.frames.length));
  }
}

// The camera, and what is drawn.
class View {
  constructor(context, root, motion) {
    this.renderer = new THREE.WebGLRenderer({ canvas, context });
    this.renderer.setClearAlpha(0);
    this.scene = new THREE.Scene();
    this.scene.add(root);
    this.meshes = [];
    root.traverse((node) => node.isMesh && this.meshes.push(node));
    for (const mesh of this.meshes) {
      mesh.frustumCulled = false; // by its place at rest, which it may leave
      mesh.userData.coloured = mesh.material;
      mesh.userData.directions = new THREE.MeshNormalMaterial({ side: mesh.material.side });
    }
    this.camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW, 1);
    this.scene.add(this.camera);
    if (this.meshes.some((mesh) => !mesh.material.isMeshBasicMaterial)) this.light();
    this.controls = new THREE.OrbitControls(this.camera, canvas);
    this.controls.enableDamping = !calm;
    this.controls.addEventListener("change", () => (this.changed = true));
    canvas.style.touchAction = "pan-y"; // a finger that goes up or down scrolls the page
    this.stand(this.bounds(motion));
    new ResizeObserver(() => this.fit()).observe(canvas);
    this.changed = true;
  }

  // For materials that are lit: from above, and from where one looks.
  light() {
    this.scene.add(new THREE.HemisphereLight(0xffffff, 0x888888, 2));
    this.camera.add(new THREE.DirectionalLight(0xffffff, 1.5));
  }

  // The box round the mesh, over all of its motion.
  bounds(motion) {
    const box = new THREE.Box3();
    for (let i = 0; i < 5; i++) {
      motion.at((motion.duration * i) / 4);
      this.scene.updateMatrixWorld(true);
      for (const mesh of this.meshes) {
        const hidden = mesh.matrixWorld.determinant() === 0; // a frame at another time
        if (!hidden) box.union(new THREE.Box3().setFromObject(mesh, true));
      }
    }
    motion.at(0);
    return box;
  }

  // In front, where the reference camera stood, so far that it can turn about the vertical.
  stand(box) {
    const { x, y, z } = box.getSize(new THREE.Vector3()).multiplyScalar(0.5);
    const around = Math.hypot(x, z);
    const slope = Math.tan((FIELD_OF_VIEW * Math.PI) / 360);
    const away = (MARGIN * Math.max(around, y)) / slope + around;
    this.camera.near = away / 100;
    this.camera.far = away * 10;
    this.camera.updateProjectionMatrix();
    box.getCenter(this.controls.target);
    this.camera.position.copy(this.controls.target).z += away;
    this.controls.minDistance = away / 20;
    this.controls.maxDistance = away * 4;
    this.controls.update();
    this.controls.saveState();
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = canvas;
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.changed = true;
  }

  // Colours as rendered, or the directions of the surface as colours; triangles' edges or faces.
  look(coloured, wireframe) {
    for (const mesh of this.meshes) {
      mesh.material = coloured ? mesh.userData.coloured : mesh.userData.directions;
      mesh.material.wireframe = wireframe;
    }
    this.changed = true;
  }

  draw() {
    this.controls.update();
    if (this.changed) this.renderer.render(this.scene, this.camera);
    this.changed = false;
  }
}

function showTime(motion, view) {
  const [now, whole] = [motion.time.toFixed(2), motion.duration.toFixed(2)];
  part("time").value = motion.time;
  part("time").ariaValueText = `${now} of ${whole} seconds`;
  part("clock").textContent = `${now} / ${whole} s`;
  part("play").textContent = motion.playing ? "Pause" : "Play";
  view.changed = true;
}

function connectTime(motion, view) {
  const slider = part("time");
  slider.max = motion.duration;
  slider.addEventListener("input", () => {
    motion.playing = false;
    motion.at(Number(slider.value));
    showTime(motion, view);
  });
  part("play").addEventListener("click", () => {
    motion.playing = !motion.playing;
    showTime(motion, view);
  });
  motion.playing = motion.duration > 0 && !calm;
  showTime(motion, view);
}

function connectLook(view) {
  const buttons = [part("colours"), part("wireframe")];
  const isOn = (button) => button.ariaPressed === "true";
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.ariaPressed = String(!isOn(button));
      view.look(...buttons.map(isOn));
    });
  }
  part("front").addEventListener("click", () => view.controls.reset());
  // the wheel scrolls the page until someone has taken hold of the mesh
  const held = (event) => document.activeElement === canvas || event.ctrlKey;
  player.addEventListener("wheel", (event) => held(event) || event.stopPropagation(), true);
}

function connectKeys(motion, view) {
  const { controls } = view;
  const step = (by) => () => {
    motion.playing = false;
    motion.step(by);
    showTime(motion, view);
  };
  const does = {
    " ": () => part("play").click(),
    ArrowLeft: step(-1),
    ArrowRight: step(1),
    "Shift+ArrowLeft": () => controls.rotateLeft(STEP),
    "Shift+ArrowRight": () => controls.rotateLeft(-STEP),
    "Shift+ArrowUp": () => controls.rotateUp(STEP),
    "Shift+ArrowDown": () => controls.rotateUp(-STEP),
    "+": () => controls.dollyIn(ZOOM),
    "-": () => controls.dollyOut(ZOOM),
    c: () => part("colours").click(),
    w: () => part("wireframe").click(),
    f: () => part("front").click(),
  };
  document.addEventListener("keydown", (event) => {
    const at = event.target;
    const ours = player.contains(at) || at === document.body;
    if (!ours || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && at.closest("button, summary, a")) return; // it presses that
    const shift = event.shiftKey && event.key.startsWith("Arrow") ? "Shift+" : "";
    const act = does[shift + event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

// Draws what changed, whenever the browser has time for a picture.
function run(motion, view) {
  let before = 0;
  view.renderer.setAnimationLoop((now) => {
    const passed = (now - before) / 1000;
    before = now;
    if (motion.playing && passed < 1) {
      motion.at((motion.time + passed) % motion.duration);
      showTime(motion, view);
    }
    view.draw();
  });
}
