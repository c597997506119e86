"""The one exception that stands for a user's mistake, a missing extra among them."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(Exception):
    """A mistake the user can mend: one line that names the place, what was found and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """


def need(module: str, extra: str) -> ModuleType:
    """Import a module that comes with an optional extra of the package.

    Raises:
        UserError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise UserError(
            f"{error.name} is not installed; expected it here: pip install 'minddistill[{extra}]'"
        ) from None
