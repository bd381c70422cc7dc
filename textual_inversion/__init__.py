"""Learns a word for the subject of a picture: textual inversion (Gal et al. 2022).

    accelerate launch textual-inversion/textual_inversion.py \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --train_data_dir load/panda/_rgba.png --placeholder_token _panda_ \\
        --initializer_token panda --output_dir outputs-textual/panda --use_augmentations

`python` instead of `accelerate launch` works too, and so does `python -m
animate124.textual_inversion` where the package is installed. The flags are those of diffusers'
example of the same name, plus `use_augmentations` and `compile`. Writes learned_embeds.bin and
.safetensors, pictures of the word (validation/), the loss curve (loss.csv, loss.png) and
checkpoints into output_dir; what an earlier run left there is moved to earlier-1 ... unless this
one resumes. Exit codes: 0 done, 2 an input that can't be used, 130 stopped with Ctrl-C (143 by
SIGTERM), 1 anything else.
"""
