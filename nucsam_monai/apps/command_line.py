"""Run a function as a command: logging, one line for an error, and the exit code."""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import fire
import fire.decorators

from nucsam_monai.utils.errors import NucSAMError
from nucsam_monai.utils.exit import TRACEBACK_VARIABLE, own_error

# Fire's help lists the attributes of a function unless their names begin with an underscore.
fire.decorators.FIRE_METADATA = "_FIRE_METADATA"


def run_command(component: object, arguments: Sequence[str] | None = None, *, name: str | None = None) -> int:
    """Run a function, or one of a dictionary of functions, with options of the command line.

    Log messages and errors of the user's input go to the standard error; an error is one line. Values of parameters
    that are texts or paths stay as they were typed, because Fire would read ``2024`` as a number.

    Args:
        component: function, or dictionary of functions, as for ``fire.Fire``.
        arguments: options. Default: those of this process.
        name: the command of ``nucsam`` that the help shows. Default: the name of the script.

    Returns:
        The exit code: 0, or 1 after an error.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    for function in component.values() if isinstance(component, Mapping) else [component]:
        if inspect.isfunction(function):
            keep_texts(function)
    try:
        typed = list(sys.argv[1:] if arguments is None else arguments)
        if name is None:
            fire.Fire(component, command=typed)
        else:
            fire.Fire({name: component}, command=[name, *typed], name="nucsam")
        sys.stdout.flush()  # a closed pipe shows here and not while Python ends
    except fire.core.FireExit:
        # Fire shows the help, and fails because required arguments are missing
        if not {"--help", "-h"} & set(sys.argv[1:] if arguments is None else arguments):
            raise
    except BrokenPipeError:  # the reader, for example head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (NucSAMError, OSError, RuntimeError) as error:  # MONAI wraps ours in RuntimeError
        known = own_error(error) or (error if isinstance(error, OSError) else None)
        if known is None or os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        sys.stderr.write(f"error: {known}\n")
        return 1
    return 0


def keep_texts(function: Callable[..., object]) -> None:
    """Tell Fire which parameters of a function are texts."""
    texts = {
        name: str
        for name, hint in get_type_hints(function).items()
        if name != "return" and {str, Path, type(None)} >= set(get_args(hint) or (hint,)) != {type(None)}
    }
    fire.decorators.SetParseFns(**texts)(function)
