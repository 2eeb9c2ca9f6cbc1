"""libcst rules: what they change, what they leave, and that the program stays the same program."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas.errors import AgentError
from codeconvoy.workers.roles.codemod.tidy import RULES, tidy
from codeconvoy.workers.roles.codemod.tidy_candidates import may_be_tidied


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = not a in b\n", "x = a not in b\n"),
        ("x = not (a is None)\n", "x = a is not None\n"),
        ("x = (not a in b) == c\n", "x = (a not in b) == c\n"),
        ("if not(a in b): pass\n", "if a not in b:\n    pass\n"),
        ("x = not (a\n         in b)\n", "x = (a\n         not in b)\n"),
        ("if (a): b()\n", "if a:\n    b()\n"),
        ("if(a or b):\n    c\n", "if a or b:\n    c\n"),
        ("while ((a)):\n    b\n", "while a:\n    b\n"),
        ("def f():\n    return('a')\n", "def f():\n    return 'a'\n"),
        ("assert (a), 'b'\n", "assert a, 'b'\n"),
        ("try:\n    a\nexcept(E):\n    b\n", "try:\n    a\nexcept E:\n    b\n"),
        ("while 1:\n    a\n", "while True:\n    a\n"),
        ("class A:\n    '''Doc.'''\n    pass\n", "class A:\n    '''Doc.'''\n"),
        ("a; b;\n", "a\nb\n"),
        ("for a in b: c; d\n", "for a in b:\n    c\n    d\n"),
        (
            "try: a\nexcept E: b\nelse: c\nfinally: d\n",
            "try:\n    a\nexcept E:\n    b\nelse:\n    c\nfinally:\n    d\n",
        ),
        ("def f():\r\n\tif (a):\r\n\t\tb\r\n", "def f():\r\n\tif a:\r\n\t\tb\r\n"),
        ("if a:\n  if b: c\n", "if a:\n  if b:\n    c\n"),
    ],
)
def test_what_is_changed(before: str, after: str) -> None:
    changed, done = tidy(before.encode())
    assert changed.decode() == after
    assert done
    assert tidy(changed) == (changed, {})


@pytest.mark.parametrize(
    "text",
    [
        "x = not a == b\n",  # == may be anything
        "x = not a in b in c\n",
        "x = not (a in b and c)\n",
        "def f():\n    return (a, b)\n",
        "def f():\n    x = yield\n    return (yield)\n",
        "assert (a, 'b')\n",
        "if (a := b):\n    c\n",
        "return_ = (a)\n",
        "if (a and\n        b):\n    c\n",
        "for a in (b for b in c):\n    d\n",
        "def f():\n    pass\n",
        "def f():\n    'Doc.'\n    pass  # nothing to do\n",
        "def f():\n    'Doc.'\n    # Nothing to do:\n    pass\n",
        "class E(Exception): pass\n",
        "if a: b  # pragma: no cover\n",
        "while 2:\n    a\n",
        "",
    ],
)
def test_what_is_left(text: str) -> None:
    assert tidy(text.encode()) == (text.encode(), {})


def test_only_the_rules_asked_for_are_applied() -> None:
    text = b"while 1:\n    if (not a in b): c\n"
    for rule in RULES - {"pass"}:
        changed, done = tidy(text, {rule})
        assert set(done) == {rule}
        assert changed != text
    assert tidy(text, {"pass"}) == (text, {})


def test_encoding_and_bom_survive() -> None:
    latin = "# coding: latin-1\nif (a): x = 'é'\n".encode("latin-1")
    assert tidy(latin)[0] == "# coding: latin-1\nif a:\n    x = 'é'\n".encode("latin-1")
    assert tidy(b"\xef\xbb\xbfa; b\n")[0] == b"\xef\xbb\xbfa\nb\n"


@pytest.mark.parametrize("text", [b"print 'a'\n", b"\xff", b"x = " + b"-" * 5000 + b"1"])
def test_what_can_not_be_read_is_one_kind_of_error(text: bytes) -> None:
    with pytest.raises(AgentError):
        tidy(text)


class _Plain(ast.NodeTransformer):
    """The same program in the form that the rules aim at, by other means."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and len(body) > 1:
                setattr(node, field, [one for one in body if not isinstance(one, ast.Pass)] or body[:1])
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=ast.Compare(ops=[ast.In() | ast.Is()]) as compare):
                compare.ops = [ast.NotIn() if isinstance(compare.ops[0], ast.In) else ast.IsNot()]
                return compare
            case ast.While(test=ast.Constant(value=1) as test):
                test.value = True
        return node


expressions = st.recursive(
    st.sampled_from(["a", "b", "None", "1", "'s'", "(a, b)", "[a]", "f(a)"]),
    lambda inner: st.builds(
        "{}{}{}".format,
        st.sampled_from(["(", "not ", "(not "]),
        st.builds("{} {} {}".format, inner, st.sampled_from(["in", "is", "==", "and", "or", "+"]), inner),
        st.sampled_from(["", ")"]),
    ),
    max_leaves=5,
)
headers = st.sampled_from(
    ["if {}:", "if({}):", "while {}:", "while (({})):", "for x in {}:", "while 1:", "if 1:"]
)
simple = st.sampled_from(["pass", "a", "a; b", "return {}", "return({})", "assert ({}), 'm'", "pass; pass"])
blocks = st.recursive(
    st.lists(simple, min_size=1, max_size=3),
    lambda inner: st.one_of(
        st.builds(lambda header, body: [f"{header} {body}"], headers, simple),
        st.builds(lambda header, body: [header, *(f"    {line}" for line in body)], headers, inner),
        st.builds(lambda one, other: [*one, *other], inner, inner),
    ),
    max_leaves=6,
)


@given(blocks, st.lists(expressions, min_size=1, max_size=4))
def test_the_program_stays_the_same(lines: list[str], operands: list[str]) -> None:
    body = [line.replace("{}", operands[number % len(operands)]) for number, line in enumerate(lines)]
    text = "def f():\n" + "".join(f"    {line}\n" for line in body)
    try:
        before = ast.parse(text)
    except SyntaxError:
        return
    after, _ = tidy(text.encode())
    assert ast.dump(_Plain().visit(ast.parse(after))) == ast.dump(_Plain().visit(before))


@pytest.mark.parametrize(
    "text",
    [
        "if (a and\n        b):\n    c\n",
        "while True:\n    pass\n",
        "class A(B): pass\ndef f(): return a\n",
        "x = (a)\nreturn_ = f(a)\nfor a in (b, c):\n    d\n",
    ],
)
def test_what_holds_nothing_to_tidy_is_not_given_to_libcst(text: str) -> None:
    assert not may_be_tidied(text.encode())
