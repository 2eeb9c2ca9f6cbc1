"""Reads nothing, writes nothing: the roles that are done by rules."""

from codeconvoy.workers.roles.role import Role, RoleKind

_EDITORS = {
    "pyupgrade": ("ruff:UP", "Newer syntax and newer names of the standard library"),
    "isort": ("ruff:I", "Imports in one order, a line for each module"),
    "unused-imports": ("ruff:F401", "Drops imports that nothing uses"),
    "simplify": ("ruff:SIM", "Shorter forms of conditions, loops and with statements"),
    "comprehensions": ("ruff:C4", "Comprehensions instead of calls that build lists to drop them"),
    "returns": ("ruff:RET", "Returns that say what they return, no else after them"),
    "tidy": ("libcst:tidy", "not in, is not, one statement a line, no needless parentheses or pass"),
}

REVIEWER = Role(
    name="reviewer",
    kind=RoleKind.REVIEW,
    description="Rejects new lint errors, lost public names, changed signatures, files that do not parse",
    provider="codemod",
    options={"rules": "reviewer"},
)
TESTER = Role(
    name="tester",
    kind=RoleKind.TEST,
    description="Writes characterisation tests of a module's public API",
    provider="codemod",
    options={"rules": "tester"},
)
EDITORS = tuple(
    Role(name=name, kind=RoleKind.EDIT, description=description, provider="codemod", options={"rules": rules})
    for name, (rules, description) in _EDITORS.items()
)
ROLES = (*EDITORS, REVIEWER, TESTER)
