"""Prompts with a learned token, for the tile prior: `<token>` stands for the subject whose look
textual inversion learnt from the reference image.
"""

from dataclasses import dataclass

import threestudio

from ..bounds import needed, path_of
from ..pretrained.learned_tokens import LearnedTokens, read_learned_tokens, token_pattern
from .prompts import PromptProcessor


@threestudio.register("animate124-textual-inversion-prompt-processor")
class TextualInversionPromptProcessor(PromptProcessor):
    """`<token>` and the name that the file has for its token mean the same.

    With several tokens in the file each goes by its name there, and `<token>` only if one is called
    so. Without `learned_embeds_path` this is a plain processor.
    """

    @dataclass
    class Config(PromptProcessor.Config):
        pretrained_model_name_or_path: str = path_of(
            "model", "stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
        # .bin or .safetensors of textual inversion
        learned_embeds_path: str | None = path_of("file", None)
        token: str = needed("<token>")  # what stands for the learned token in a prompt

    cfg: Config

    def learned_tokens(self, prompts: list[str]) -> LearnedTokens:
        cfg = self.cfg
        asked = [prompt for prompt in prompts if cfg.token in prompt]
        if cfg.learned_embeds_path is None:
            if asked:
                raise ValueError(
                    f"The prompt {asked[0]!r} has {cfg.token}, but no learned_embeds_path says "
                    "what it is. Run textual-inversion/textual_inversion.py on the picture and "
                    "pass its learned_embeds.bin, or write the subject's name instead."
                )
            return {}
        learned = read_learned_tokens(cfg.learned_embeds_path)
        if len(learned) == 1:
            learned[cfg.token] = next(iter(learned.values()))
        elif asked and cfg.token not in learned:
            raise ValueError(
                f"{cfg.learned_embeds_path} has several tokens, {list(learned)}, so {cfg.token} in "
                f"the prompt {asked[0]!r} is ambiguous. Write the name of the one that you mean."
            )
        pattern = token_pattern(list(learned))
        if not pattern.search(cfg.prompt):
            raise ValueError(
                f"The prompt {cfg.prompt!r} has no learned token, so {cfg.learned_embeds_path} "
                f"would do nothing. Write {' or '.join(learned)} where the subject stands, or pass "
                "learned_embeds_path=null."
            )
        return learned
