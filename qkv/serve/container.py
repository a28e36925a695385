"""The entry point of an image as SageMaker starts it: `python -m qkv.serve.container serve`, or `train`.

serve: at 0.0.0.0:8080 (SAGEMAKER_BIND_TO_PORT) until SIGTERM, the model that SM_QKV_MODEL names, else the one in
/opt/ml/model, else what HF_MODEL_ID names, else the package's defaults. SM_QKV_X_Y=v sets x_y of `ServeSettings`, or of
where to compute: SM_QKV_TEXTS=16, SM_QKV_DTYPE=float32.

train: `qkv train RECIPE key=value ...` out of hyperparameters.json, whose values are texts; `recipe` is a name that
comes along or a .toml file of a channel, and may be left out where the channels hold just one. Paths in it begin in
/opt/ml/input/data. The run lies in /opt/ml/checkpoints and goes on from there; its model ends in /opt/ml/model, the
reason of a failure in /opt/ml/output/failure.
"""

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkv import registry
from qkv.config import build, read_toml
from qkv.errors import ConfigError, InputError, OutputError, QkvError
from qkv.untrusted import read_json

MAX_FAILURE = 1024  # characters that are shown
_PREFIX, _MODEL = "SM_QKV_", "SM_QKV_MODEL"
_WHERE = ("device", "dtype", "threads", "memory")
_NOTHING = Path(os.devnull)  # a TOML file without keys, which overrides fill


def base() -> Path:
    return Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))


def settings(env: Mapping[str, str]) -> Any:
    """The server's settings. Raises ConfigError, and what finding the model does."""
    from qkv.serve.settings import ServeSettings

    said = [(name.removeprefix(_PREFIX).lower(), env[name]) for name in env if name.startswith(_PREFIX)]
    keys = [f"where.{key}={value}" if key in _WHERE else f"{key}={value}" for key, value in said if key != "model"]
    port = env.get("SAGEMAKER_BIND_TO_PORT", "8080")
    if not port.isdecimal():
        raise ConfigError(f"SAGEMAKER_BIND_TO_PORT={port} is no port")
    values = {"host": "0.0.0.0", "hosts": ["*"], "port": int(port)} | read_toml(_NOTHING, keys)
    name = model(env)
    kinds = {each.name: each.kind for each in registry.listing()}
    return replace(build(ServeSettings, values), models={} if name is None else {kinds[name]: name})


def model(env: Mapping[str, str]) -> str | None:
    """The name of the model to serve, here by now; None: the defaults. Raises NotFoundError, OutputError ..."""
    from qkv.fetch.pull import find

    if asked := env.get(_MODEL):
        return _named(asked, find(asked))
    inside = base() / "model"
    folders = [inside, *sorted(inside.iterdir())] if inside.is_dir() else []
    for folder in folders:
        if folder.is_dir() and registry.is_model(folder):
            return _named("model", folder)
    asked = env.get("HF_MODEL_ID")
    return _named(asked, find(asked)) if asked else None


def _named(asked: str, path: Path) -> str:
    """The name under which a model is listed; one that lies elsewhere gets one: `model`."""
    if asked in {each.name for each in registry.listing()} and asked != "model":
        return asked
    link = registry.home() / "models" / "model"
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to((path if path.is_dir() else path.parent).resolve())
    except OSError as error:
        raise OutputError(f"cannot name the model at {link}: {error.strerror}; QKV_HOME names another place") from error
    return "model"


def serve() -> None:
    """Answers until a signal."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the first process of a container has no handler of its own
    from qkv.serve.run import serve as run

    run(settings(os.environ), lambda address: print(f"serving at {address}", file=sys.stderr, flush=True))


def train() -> None:
    """Trains what the hyperparameters say. Raises what a training does, and writes the reason."""
    try:
        _train()
    except Exception as error:
        output = base() / "output"
        output.mkdir(parents=True, exist_ok=True)
        (output / "failure").write_text(str(error)[:MAX_FAILURE], encoding="utf-8", errors="replace")
        raise


def _train() -> None:
    from qkv.device import find_device
    from qkv.train.recipes import run

    given = read_json(base() / "input/config/hyperparameters.json", optional=True)
    own = {key: str(value) for key, value in given.items() if not key.startswith("sagemaker_")}
    data = base() / "input" / "data"
    recipe = own.pop("recipe", "").strip('"') or _recipe(data)
    if data.is_dir():
        recipe = str(data / recipe) if (data / recipe).is_file() else recipe
        os.chdir(data)
    folder = base() / "checkpoints"
    changes = [f"{key}={value}" for key, value in own.items()]
    result = run(recipe, changes, folder=folder, device=str(find_device("auto")), resume=True)
    if (folder / "model").is_dir():
        shutil.copytree(folder / "model", base() / "model", dirs_exist_ok=True)
    print(f"ended ({result.ended}) at step {result.steps}: loss={result.loss:g};", flush=True)


def _recipe(data: Path) -> str:
    found = sorted(str(path) for path in data.glob("*/*.toml"))
    if len(found) != 1:
        raise InputError(f"the channels hold {len(found)} recipes; name one as the hyperparameter recipe")
    return found[0]


def main(arguments: list[str]) -> int:
    """0, or 2 with one line on stderr."""
    verbs = {"serve": serve, "train": train}
    if len(arguments) != 1 or arguments[0] not in verbs:
        print("qkv: error: say serve or train", file=sys.stderr)
        return 2
    try:
        verbs[arguments[0]]()
    except QkvError as error:
        print(f"qkv: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
