"""Check what the user asked for by itself, before any picture is read."""

from __future__ import annotations

import math
import re

from compile.backbones.choice import DEFAULT, Backbone
from compile.classes import class_names
from compile.job import LEAST_FIT_STEPS, WORK, Settings
from compile.methods.method import Method
from compile.methods.registry import METHODS, TAUGHT, UnknownMethodError, find_method
from edge.errors import BeltlineError

SMALLEST_TARGET = 1e-6  # no set of good parts says anything about rarer rejects
LARGEST_SEED = 2**32 - 1
LONGEST_NAME = 100  # characters, of a class, a product or a version
GROUPINGS = ("near-duplicates", "folder")


class WishError(BeltlineError):
    """A wish that no data could meet. The message has the option, the value and what is allowed."""


def check_side(side: int, backbone: Backbone) -> None:
    """Refuse a size that the backbone does not take.

    Raises:
        WishError: it is none.

    """
    smallest, largest = backbone.sides
    if side % backbone.step or not smallest <= side <= largest:
        raise WishError(f"--size {side}: give a multiple of {backbone.step} from {smallest} to {largest}.")


def check_learn_defects(count: int) -> None:
    """Refuse a number of labelled defects that is none.

    Raises:
        WishError: it is below 0.

    """
    if count < 0:
        raise WishError(f"--learn-defects {count}: give how many labelled defects to learn from, or 0 for none.")


def check_names(wanted: Settings) -> None:
    """Refuse names that a bundle cannot have.

    Raises:
        WishError: for the first of them.

    """
    name = "--name" if wanted.name else "-o"
    for option, value in ((name, wanted.name or wanted.output.stem), ("--version", wanted.version)):
        if not (value.isprintable() and 0 < len(value) <= LONGEST_NAME):
            raise WishError(
                f"{option} {value[:30]!r}: give 1 to {LONGEST_NAME} printable characters ({len(value)} were given)."
            )
    if wanted.output.suffix == WORK:
        raise WishError(f"-o {wanted.output}: the working folder would lie there. Name the bundle NAME.bundle.")


def check_wishes(wanted: Settings, backbone: Backbone = DEFAULT) -> Method:
    """Refuse wishes that make no sense whatever the data, and give the method.

    Raises:
        WishError: for the first of them.

    """
    defect, budget, target = wanted.smallest_defect_px, wanted.budget_ms, wanted.target_false_reject
    if wanted.size is not None:
        check_side(wanted.size, backbone)
    if defect is not None and not 1 <= defect < math.inf:
        raise WishError(f"--smallest-defect {defect}: give a diameter of at least 1 source pixel.")
    if budget is not None and not 0 < budget < math.inf:
        raise WishError(f"--budget-ms {budget}: give milliseconds above zero, or leave it out for no limit.")
    if target is not None and not SMALLEST_TARGET <= target < 1:
        raise WishError(f"--target-false-reject {target}: must lie between {SMALLEST_TARGET} and 1, for example 0.01.")
    if wanted.tail_model and target is None:
        raise WishError("--tail-model: state with --target-false-reject which rate it shall reach.")
    if not 0 <= wanted.seed <= LARGEST_SEED:
        raise WishError(f"--seed {wanted.seed}: give a whole number from 0 to {LARGEST_SEED}.")
    if wanted.fit_steps is not None and wanted.fit_steps < LEAST_FIT_STEPS:
        raise WishError(f"--fit-steps {wanted.fit_steps}: at least {LEAST_FIT_STEPS} are needed.")
    try:
        method = find_method(wanted.method, backbone)
    except UnknownMethodError as error:
        option = "--teacher" if wanted.method.startswith(TAUGHT) else "--method"
        raise WishError(f"{option}: {error}") from error
    if method.views:
        raise WishError(
            f"--method {wanted.method}: looks at views of scans, and no bundle carries views yet. Compare it with "
            "beltline bench, or take a method for pictures or for scans."
        )
    if wanted.background != "none" and not method.scans:
        raise WishError(f"--background {wanted.background}: --method {wanted.method} looks at no scan. Leave it out.")
    if budget is not None and wanted.size is None and method.head_share is None:
        raise WishError(
            f"--budget-ms {budget:g}: what --method {wanted.method} takes is known only once it is fitted. Choose "
            "--size instead, and look at the times in the report."
        )
    check_learn_defects(wanted.learn_defects)
    if wanted.learn_defects and not method.painted:
        able = ", ".join(name for name, each in METHODS.items() if each.painted)
        raise WishError(
            f"--learn-defects {wanted.learn_defects}: --method {wanted.method} learns nothing from defects. Take one "
            f"that does ({able}), or leave the option out."
        )
    if wanted.more:
        _check_classes(wanted, method)
    if wanted.group_by not in GROUPINGS:
        try:
            re.compile(wanted.group_by)
        except re.error as error:
            raise WishError(
                f"--group-by {wanted.group_by!r}: give {' or '.join(GROUPINGS)}, or a regular expression "
                f"(this is none: {error})."
            ) from error
    return method


def _check_classes(wanted: Settings, method: Method) -> None:
    if not method.several:
        able = ", ".join(name for name, each in METHODS.items() if each.several)
        taught = wanted.method.startswith(TAUGHT)
        given = f"--teacher {wanted.method.removeprefix(TAUGHT)}" if taught else f"--method {wanted.method}"
        raise WishError(
            f"{given}: makes a model of one product, and {len(wanted.folders)} folders were given. "
            f"Compile each by itself, or take a method for several classes: {able}."
        )
    names = class_names(wanted.folders)
    for folder, name in zip(wanted.folders, names, strict=True):
        if not (name.isprintable() and 0 < len(name) <= LONGEST_NAME):
            raise WishError(
                f"{folder}: a class is named by its folder, and {name!r} is no name of 1 to {LONGEST_NAME} printable "
                "characters. Rename the folder."
            )
        if names.count(name) > 1:
            both = ", ".join(str(each) for each, its in zip(wanted.folders, names, strict=True) if its == name)
            raise WishError(f"{both}: a class is named by its folder, and {name!r} is there twice. Rename one of them.")
