"""Configs: YAML files, key=value overrides, dataclasses that say which keys exist.

A key that no dataclass knows is an error that says where the key stood and which ones are close.
Every message uses the full dotted path (`system.geometry.radius`), also for a module that only
got its own part of the config.
"""

import copy
import dataclasses
import os
import re
import secrets
import typing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import omegaconf
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging import version
from threestudio.log import get_rank, warn
from threestudio.registry import __modules__, close_names
from threestudio.utils.bounds import Bounded, alternatives, bounded, path_of, schedule_knots
from threestudio.utils.misc import find_last_path, trial_folder_name

SEED_VARIABLE = "THREESTUDIO_SEED"  # the seed that rank 0 drew, likewise
TIMESTAMP_VARIABLE = "THREESTUDIO_TIMESTAMP"  # rank 0's timestamp, for the processes it starts


def C_max(value: Any) -> float:
    """The largest value that a schedule takes."""
    if isinstance(value, (int, float)):
        return value
    return max(v for _, v in schedule_knots(value))


RESOLVERS = {
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "basename": lambda path: os.path.basename(path),
    "rmspace": lambda text, substitute: str(text).replace(" ", substitute),
    "tuple2": lambda number: [float(number), float(number)],
    "gt0": lambda number: number > 0,
    "cmaxgt0": lambda schedule: C_max(schedule) > 0,
    "not": lambda flag: not flag,
    "cmaxgt0orcmaxgt0": lambda a, b: C_max(a) > 0 or C_max(b) > 0,
}
# OmegaConf 2.4 renamed it to what an older, different function was called
_new = version.parse(omegaconf.__version__) >= version.parse("2.4.0.dev0")
_register = OmegaConf.register_resolver if _new else OmegaConf.register_new_resolver
for _name, _resolver in RESOLVERS.items():
    _register(_name, _resolver, replace=True)


def _new_timestamp() -> str:
    """Rank 0's start time, which the processes that it starts inherit.

    Processes that something else started can't agree on one, and get none.
    """
    inherited = os.environ.get(TIMESTAMP_VARIABLE)
    if get_rank() > 0 and inherited is not None:
        return inherited
    tasks = [os.environ.get(name, "1") for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")]
    if inherited is None and any(n.isdigit() and int(n) > 1 for n in tasks):
        warn(
            "Several processes were started from outside: no timestamp is added, make sure "
            "that the tag is unique."
        )
        return ""
    os.environ[TIMESTAMP_VARIABLE] = datetime.now().strftime("@%Y%m%d-%H%M%S")
    return os.environ[TIMESTAMP_VARIABLE]


def _drawn_seed() -> int:
    """A seed that nobody chose, the same for the processes that rank 0 starts."""
    if get_rank() == 0 or SEED_VARIABLE not in os.environ:
        os.environ[SEED_VARIABLE] = str(secrets.randbelow(2**31))
    return int(os.environ[SEED_VARIABLE])


@dataclass
class ExperimentSettings(Bounded):
    """An experiment's keys, and what follows from them; nothing is made."""

    name: str = "default"  # folder below exp_root_dir
    description: str = ""  # for people
    tag: str = ""  # start of the trial folder's name
    # of every random generator; each process adds its rank; -1 draws one and writes it down
    seed: int = bounded(0, 0, 2**32 - 2**10, names=(-1,))
    use_timestamp: bool = True  # adds @<start time> to the trial folder's name
    timestamp: str | None = None  # set when an earlier trial's parsed.yaml is run again
    exp_root_dir: str = path_of("new folder", "outputs")  # where everything is written

    # these follow from the ones above
    exp_dir: str = "outputs/default"  # <exp_root_dir>/<name>
    trial_name: str = "exp"  # <tag><timestamp>
    trial_dir: str = "outputs/default/exp"  # <exp_dir>/<trial_name>
    n_gpus: int = 1  # GPUs that the launcher was given

    # checkpoint to go on from; @LAST stands for the newest trial
    resume: str | None = path_of("checkpoint", None)

    data_type: str = ""  # registered name of the data module
    data: dict = field(default_factory=dict)

    system_type: str = ""  # registered name of the system
    system: dict = field(default_factory=dict)

    trainer: dict = field(default_factory=dict)  # arguments of Lightning's Trainer
    checkpoint: dict = field(default_factory=dict)  # arguments of Lightning's ModelCheckpoint

    def __post_init__(self):
        super().__post_init__()
        for name in ("name", "tag", "exp_root_dir"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is null, but has to be a text.")
            setattr(self, name, str(getattr(self, name)))
        if self.seed == -1:
            self.seed = _drawn_seed()
        if not self.tag and not self.use_timestamp:
            raise ValueError("A trial folder needs a name: set a tag, or use_timestamp=true.")
        self.resume = find_last_path(self.resume)  # before this trial's own folder is the newest
        if self.timestamp is None:
            self.timestamp = _new_timestamp() if self.use_timestamp else ""
        self.trial_name = trial_folder_name(self.tag) + self.timestamp
        self.exp_dir = os.path.join(self.exp_root_dir, self.name)
        self.trial_dir = os.path.join(self.exp_dir, self.trial_name)


@dataclass
class ExperimentConfig(ExperimentSettings):
    """The same; the trial's folder is made, as threestudio does."""

    def __post_init__(self):
        super().__post_init__()
        os.makedirs(self.trial_dir, exist_ok=True)


def _parse_value(text: str) -> Any:
    """The value of an override: YAML for numbers, lists, dicts and quoted text, else the text as
    it stands.

    (So a prompt may contain a colon or a hash, which YAML would cut off or read as a dict.)
    """
    structured = text.lstrip()[:1] in tuple("[{'\"")
    try:
        parsed = OmegaConf.from_dotlist([f"value={text}"])
    except yaml.YAMLError as error:
        if structured:
            raise ValueError(f"{text!r} is not valid YAML: {error}") from None
        return text
    except OmegaConfBaseException as error:
        raise ValueError(f"{text!r} can't be read: {str(error).splitlines()[0]}") from None
    value = config_to_primitive(parsed, resolve=False)["value"]
    return text if isinstance(value, (str, dict, list)) and not structured else value


def split_override(argument: str) -> tuple[str, str]:
    """`a.b=1` -> "a.b", "1"."""
    key, equals, text = argument.partition("=")
    if not equals or key.startswith("-") or not key.strip():
        raise ValueError(
            f"Don't know what to do with {argument!r}: overrides are written key=value, "
            "for example trainer.max_steps=100 (quote it if the value has spaces)."
        )
    return key.strip(), text


def parse_overrides(arguments: list[str]) -> list[tuple[str, Any]]:
    """`a.b=1` -> ("a.b", 1)."""
    pairs = []
    for argument in arguments:
        key, text = split_override(argument)
        pairs.append((key, _parse_value(text)))
    return pairs


def escaped(value: Any) -> Any:
    """The value, with texts such that OmegaConf reads them as they are, also those with `${`."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", value)
    if isinstance(value, dict):
        return {key: escaped(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(escaped(part) for part in value)
    return value


def _text_types(cfg: DictConfig, key: str) -> set:
    """The types of a key that takes text and no number; empty if it isn't known to be one."""
    section, _, name = key.rpartition(".")
    if section == "":
        fields: Any = ExperimentSettings
    else:
        kind = OmegaConf.select(cfg, f"{section}_type", default=None)
        fields = getattr(__modules__.get(str(kind).partition(":")[0]), "Config", None)
    if fields is None:
        return {str} if name.endswith("_path") else set()
    found = alternatives(typing.get_type_hints(fields).get(name))
    return found if found <= {str, type(None)} else set()


def _override(cfg: DictConfig, argument: str) -> None:
    """Sets one `key=value`. Prompts, names and paths are text, character by character, unless it
    stands in quotes; an environment variable is never put in."""
    key, text = split_override(argument)
    types = _text_types(cfg, key)
    if types and not (text in ("", "null") and type(None) in types):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        try:
            value = yaml.safe_load(text) if quoted else text
        except yaml.YAMLError:
            value = text
        value = escaped(value if isinstance(value, str) else text)
    elif re.search(r"\$\{\s*oc\.", text):
        raise ValueError(
            f"{argument}: on the command line nothing is read from the environment. The shell "
            'can put a variable in: key="$VARIABLE".'
        )
    else:
        value = _parse_value(text)
    path = _with_brackets(cfg, key)
    # a value may refer to what a later word gives
    before = OmegaConf.select(cfg, path, default=None, throw_on_resolution_failure=False)
    if _names_another(before, value):
        OmegaConf.update(cfg, f"{path}.args", {}, merge=False)
    OmegaConf.update(cfg, path, value, merge=True)


def _names_another(before: Any, value: Any) -> bool:
    """Whether the override of an optimizer or scheduler {name, args} names another class, which
    the args written for the one before don't suit."""
    return (
        OmegaConf.is_dict(before)
        and isinstance(value, dict)
        and "args" in before
        and value.get("name", before.get("name")) != before.get("name")
    )


def _with_brackets(cfg: DictConfig, key: str) -> str:
    """The key with `[a.b]` where the config has a key `a.b`, as optimizer.params does."""
    parts, path = key.split("."), ""
    node: Any = cfg
    while parts:
        sizes = range(len(parts), 1, -1) if OmegaConf.is_dict(node) else ()
        size = next((n for n in sizes if ".".join(parts[:n]) in node), 1)
        name = ".".join(parts[:size])
        path += f"[{name}]" if size > 1 else f".{name}" if path else name
        is_there = OmegaConf.is_dict(node) and name in node
        node = node._get_node(name) if is_there else None
        parts = parts[size:]
    return path


def overridden(cfg: DictConfig, arguments: list[str], **kwargs: Any) -> DictConfig:
    """The config with key=value overrides and keyword arguments, everything that refers to others
    resolved. It is changed on the way."""
    try:
        for argument in arguments:
            _override(cfg, argument)
        whole = OmegaConf.merge(cfg, kwargs)
        return OmegaConf.create(escaped(OmegaConf.to_container(whole, resolve=True)))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        # what is written there names the keys that it is made of
        where = f" ({error.full_key}: {error.child_node})" if error.full_key else ""
        raise ValueError(f"The config cannot be resolved: {reason}{where}") from error


def load_yaml(path: str) -> DictConfig:
    """A YAML file as a config; a ValueError or FileNotFoundError names it if it isn't one."""
    if not os.path.isfile(path):
        folder = Path(path).parent
        names = [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else []
        near = close_names(Path(path).name, names) or sorted(names)
        raise FileNotFoundError(
            f"There is no config {path!r}"
            + (
                f"; {folder} has {', '.join(near)}."
                if near
                else f" ({os.getcwd()} is the working directory)."
            )
        )
    try:
        conf = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The config {path!r} is not valid YAML: {error}") from None
    if not isinstance(conf, DictConfig):
        raise ValueError(f"The config {path!r} should be a mapping of keys, but is a list.")
    if not conf:
        raise ValueError(f"The config {path!r} is empty. Take another copy of it.")
    return conf


def load_config(*yamls: str, **given: Any) -> Any:
    """An experiment's config, with its trial's folder; see `merge_config`."""
    return parse_structured(ExperimentConfig, merge_config(*yamls, **given))


def merge_config(
    *yamls: str, cli_args: list | tuple = (), from_string: bool = False, **kwargs
) -> DictConfig:
    """YAML files (or strings), key=value overrides and keyword arguments, in this order."""
    confs = [OmegaConf.create(y) if from_string else load_yaml(y) for y in yamls]
    merged = OmegaConf.merge(*confs)
    assert isinstance(merged, DictConfig)  # as each of them is
    return overridden(merged, list(cli_args), **kwargs)


def config_to_primitive(config: Any, resolve: bool = True) -> Any:
    """Plain dicts and lists instead of OmegaConf's."""
    return (
        OmegaConf.to_container(config, resolve=resolve) if OmegaConf.is_config(config) else config
    )


def dump_config(path: str, config: Any) -> None:
    """Writes a config as YAML."""
    with open(path, "w") as file:
        OmegaConf.save(config=config, f=file)


def _where(cfg: Any) -> str:
    """The dotted path of a config node, counted from the experiment's config."""
    if not OmegaConf.is_config(cfg):
        return ""
    start = cfg._get_root().__dict__.get("_where", "")
    return ".".join(part for part in (start, cfg._get_full_key(None)) if part)


def _dataclass_of(annotation: Any) -> type | None:
    """The dataclass in `Nested` or `Optional[Nested]`."""
    options = [annotation, *typing.get_args(annotation)]
    found = [o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)]
    return found[0] if found else None


def _build(fields: type, cfg: Any, where: str) -> Any:
    """An instance of the dataclass `fields`; nested dataclasses are built and checked likewise."""
    if not OmegaConf.is_dict(cfg) and not isinstance(cfg, dict):
        raise ValueError(f"{where or 'The config'} should be a mapping of keys, but is {cfg!r}.")
    known = {f.name: f for f in dataclasses.fields(fields) if f.init}
    prefix = f"{where}." if where else ""
    unknown = [str(key) for key in cfg if key not in known]
    if unknown:
        lines = []
        for key in unknown:
            near = close_names(key, known)
            hint = f"close keys: {', '.join(near)}" if near else f"known keys: {', '.join(known)}"
            lines.append(f"{prefix}{key} ({hint})")
        raise ValueError(
            f"Nothing reads the key{'s' * (len(unknown) > 1)} {'; '.join(lines)}. "
            f"[{fields.__qualname__}]"
        )
    hints = typing.get_type_hints(fields)
    values = {}
    for key in cfg:
        try:
            value = cfg[key]
        except OmegaConfBaseException as error:
            raise ValueError(
                f"{prefix}{key} must be given: {str(error).splitlines()[0]}."
            ) from None
        nested = _dataclass_of(hints[key])
        if nested is not None and (OmegaConf.is_dict(value) or isinstance(value, dict)):
            value = _build(nested, value, f"{prefix}{key}")
        values[key] = value
    needed = [
        name
        for name, f in known.items()
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and name not in values
    ]
    if needed:
        raise ValueError(
            f"{', '.join(prefix + n for n in needed)} must be given. [{fields.__qualname__}]"
        )
    try:
        instance = fields(**values)
    except ValueError as error:  # of __post_init__, which doesn't know where this stands
        about = re.match(r"\w+", str(error))
        place = prefix if about and about[0] in known else f"{where}: " if where else ""
        place = "" if str(error).startswith(prefix) else place  # of a section of this one
        raise ValueError(f"{place}{error}") from error
    except TypeError as error:  # likewise: a value of another type than the look expects
        raise ValueError(
            f"{where or 'The config'} has a value of a wrong type ({error}): {dict(values)}. "
            f"[{fields.__qualname__}]"
        ) from error
    _check_types(instance, where)
    return instance


def _escaped_fields(instance: Any) -> Any:
    """A copy of the dataclass instance whose plain texts OmegaConf reads as they are."""
    if OmegaConf.is_config(instance):
        return instance
    twin = copy.copy(instance)
    for f in dataclasses.fields(instance):
        value = getattr(instance, f.name)
        nested = dataclasses.is_dataclass(value)
        setattr(twin, f.name, _escaped_fields(value) if nested else escaped(value))
    return twin


def _check_types(instance: Any, where: str) -> DictConfig:
    """The dataclass instance as a config; a value of the wrong type is an error with its path."""
    try:
        return OmegaConf.structured(_escaped_fields(instance))
    except OmegaConfBaseException as error:
        text = str(error)
        key = re.search(r"full_key: (\S+)", text)
        path = ".".join(part for part in (where, key.group(1) if key else "") if part)
        name = type(instance).__qualname__
        raise ValueError(f"{path}: {text.splitlines()[0]} [{name}]") from None


def parse_structured(fields: Any, cfg: dict | DictConfig | None = None) -> Any:
    """The config as the dataclass `fields` describes it.

    Defaults are filled in, types checked, unknown keys refused, also in nested dataclasses.
    """
    where = _where(cfg)
    structured = _check_types(_build(fields, {} if cfg is None else cfg, where), where)
    # a plain attribute, which OmegaConf neither shows nor saves: messages about deeper nodes
    # start from it
    object.__setattr__(structured, "_where", where)
    return structured
