"""A sentence about a picture."""

from typing import Any

from PIL import Image

from ..pretrained.offline import only_local


def caption(rgb: Image.Image, model: str) -> str:
    """One sentence about the picture, by BLIP."""
    options: Any = {"local_files_only": only_local(model), "trust_remote_code": False}
    from transformers import BlipForConditionalGeneration, BlipProcessor

    processor: Any = BlipProcessor.from_pretrained(model, **options)
    network = BlipForConditionalGeneration.from_pretrained(model, **options).eval()
    tokens = network.generate(**processor(rgb, return_tensors="pt"), max_new_tokens=30)
    return processor.decode(tokens[0], skip_special_tokens=True).strip()
