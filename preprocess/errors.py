"""What makes a photo or a model unusable, in one line for a person."""


class PreprocessError(ValueError):
    """An input that can't be used; the message says what came and what to try."""


def first_line(error: BaseException) -> str:
    """The error's message in one line, with its name where the message alone says little."""
    line = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, (OSError, ValueError, ImportError, PreprocessError)) and line:
        return line
    return f"{type(error).__name__}: {line}"
