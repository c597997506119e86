"""Extras that are not installed."""

import pytest

from minddistill.errors import UserError, need


def test_missing_extras_say_how_to_install_them():
    with pytest.raises(UserError, match=r"^no_such_package is not installed; .*pip install 'minddistill\[deploy\]'$"):
        need("no_such_package.part", "deploy")
    # A module that its package lacks is no missing extra.
    with pytest.raises(ModuleNotFoundError, match=r"json\.no_such_part"):
        need("json.no_such_part", "deploy")
