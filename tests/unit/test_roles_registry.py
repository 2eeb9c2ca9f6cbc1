"""Which roles there are, who does them, and that what is wrong is said before the first task."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.llm.agent import ModelAgent
from codeconvoy.workers.llm.command import CommandAgent
from codeconvoy.workers.llm.failover import FailoverAgent
from codeconvoy.workers.llm.provider import Credentials, Provider
from codeconvoy.workers.roles import agents, registry
from codeconvoy.workers.roles.agents import check_declared, make_agent
from codeconvoy.workers.roles.registry import load_roles
from codeconvoy.workers.roles.role import Agent, Answer, Context, NextProvider, Role, RoleKind

MODEL = '[defaults]\nprovider = "openai"\nmodel = "m"\n'
KEYS = {"openai": "k", "anthropic": "k"}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(content: str) -> Path:
        path = tmp_path / "roles.toml"
        path.write_text(content)
        return path

    return write


def plain_role() -> Role:
    """A role that an entry point names."""
    return Role(name="docs", kind=RoleKind.EDIT, description="from a package", provider="mine")


def several_roles() -> list[Role]:
    return [plain_role(), Role(name="generator", kind=RoleKind.EDIT, description="mine", provider="mine")]


def fails() -> Role:
    raise ValueError("by test")


A_ROLE = plain_role()
A_TAKEN_NAME = replace(A_ROLE, name="git")
NO_ROLE = "docs"


class MyAgent:
    """An agent of a provider from an entry point."""

    def __init__(self, role: Role, credentials: Credentials) -> None:
        self.role = role

    async def work(self, context: Context) -> Answer:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing."""


def objector(context: Context, answer: Answer) -> tuple[str, ...]:
    return ("no",)


def install(monkeypatch: pytest.MonkeyPatch, **names: str) -> None:
    """Entry points of these groups, each by an attribute of this module."""
    module = "tests.unit.test_roles_registry"
    monkeypatch.setitem(sys.modules, module, sys.modules[__name__])
    points = EntryPoints(
        EntryPoint("mine", f"{module}:{attribute}", f"codeconvoy.{group}")
        for group, attribute in names.items()
    )

    def entry_points(*, group: str) -> EntryPoints:
        return points.select(group=group)

    for user in (registry, agents):
        monkeypatch.setattr(user, "entry_points", entry_points)


def test_what_ships() -> None:
    roles = load_roles()
    assert [roles[name].kind for name in ("generator", "reviewer", "tester", "merger", "planner")] == list(
        RoleKind
    )
    codemods = {"pyupgrade", "isort", "unused-imports", "simplify", "comprehensions", "tidy"}
    assert codemods | {"lint-reviewer", "api-tester"} <= set(roles)
    assert all(role.name == name and role.description for name, role in roles.items())
    for name in codemods | {"lint-reviewer", "api-tester"}:
        make_agent(roles[name], {})


def test_defaults_reach_the_roles_that_name_no_provider(file: Callable[[str], Path]) -> None:
    roles = load_roles(file(MODEL + '[roles.tester]\nprovider = "anthropic"\nmodel = "n"\n'))
    assert (roles["generator"].provider, roles["generator"].model) == ("openai", "m")
    assert (roles["tester"].provider, roles["tester"].model) == ("anthropic", "n")
    assert roles["isort"].provider == "codemod" and roles["isort"].model == ""
    for name in ("generator", "tester"):
        assert isinstance(make_agent(roles[name], KEYS), ModelAgent)


NEXT = """
[defaults]
provider = "openai"
model = "m"
[[defaults.next]]
provider = "anthropic"
model = "n"
[roles.tester]
next = []
[roles.planner]
model = "big"
next = [{ provider = "openai", model = "m", options = { base_url = "http://h/v1", seed = 7 } },
        { provider = "command", options = { argv = ["sh", "-c", "a b"] } }]
[roles.reviewer]
provider = "anthropic"
model = "r"
"""


def test_further_providers_in_their_order(file: Callable[[str], Path]) -> None:
    roles = load_roles(file(NEXT))
    assert roles["generator"].next == (NextProvider("anthropic", "n"),)
    assert roles["tester"].next == () == roles["isort"].next
    assert roles["reviewer"].next == (), "the defaults' are for those of the defaults' provider"
    assert [(place, one.provider, one.model, one.next) for place, one in roles["planner"].by_provider()] == [
        ("roles.planner", "openai", "big", ()),
        ("roles.planner.next[0]", "openai", "m", ()),
        ("roles.planner.next[1]", "command", "", ()),
    ]
    assert roles["planner"].next[0].options == {"base_url": "http://h/v1", "seed": "7"}
    agent = make_agent(roles["planner"], KEYS)
    assert isinstance(agent, FailoverAgent)
    assert [choice.name for choice in agent._choices] == ["openai:big", "openai:h:m", "command"]
    assert isinstance(make_agent(roles["tester"], KEYS), ModelAgent)


def test_the_documented_example_is_one(file: Callable[[str], Path]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
    [example] = [
        block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "defaults.next" in block
    ]
    roles = load_roles(file(example))
    assert [len(roles[name].next) for name in ("generator", "reviewer", "tester")] == [2, 0, 1]
    for name in ("generator", "reviewer", "tester"):
        make_agent(roles[name], KEYS)


def test_a_role_that_gets_another_provider_loses_its_next_ones() -> None:
    entry = registry._RoleEntry(provider="anthropic")
    former = replace(plain_role(), provider="openai", next=(NextProvider("anthropic", "n"),))
    assert registry._role("docs", entry, former, Path()).next == ()
    assert registry._role("docs", registry._RoleEntry(model="x"), former, Path()).next == former.next


@pytest.mark.parametrize(
    ("one", "field", "reason"),
    [
        (NextProvider("gpt", "m"), "roles.r.next[0].provider", "'gpt' is not known"),
        (NextProvider(""), "roles.r.next[0].provider", "no provider is set"),
        (NextProvider("anthropic"), "roles.r.next[0].model", "needs a model"),
        (NextProvider("anthropic", "m", {"key": "team"}), "roles.r.next[0].provider", "no key 'team'"),
        (NextProvider("anthropic", "m", {"seed": "1"}), "roles.r.next[0].options.seed", "no option"),
        (NextProvider("openai", "m"), "roles.r.next[0]", "asked before"),
        (NextProvider("codemod", "", {"rules": "tester"}), "roles.r.next[0].options.rules", "of kind edit"),
    ],
)
def test_a_next_provider_that_can_not_be_used_is_told_at_start(
    one: NextProvider, field: str, reason: str
) -> None:
    with pytest.raises(BadInput) as caught:
        make_agent(replace(role("openai"), next=(one,)), KEYS)
    assert caught.value.field == field and reason in caught.value.reason
    assert caught.value.remedy and "[defaults]" not in caught.value.remedy


def test_a_role_of_one_s_own(file: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text("Write docstrings.")
    entry = (
        '[roles.docs]\nkind = "edit"\ndescription = "d"\nprovider = "command"\nprompt_file = "p.md"\n'
        f'lens = "style"\nconcurrency = 2\noptions = {{ argv = ["{sys.executable}", "-c", "a b"] }}\n'
    )
    role = load_roles(file(entry))["docs"]
    assert (role.prompt, role.lens, role.concurrency) == ("Write docstrings.", "style", 2)
    agent = make_agent(role, {})
    assert isinstance(agent, CommandAgent) and agent._argv == (sys.executable, "-c", "a b")


def test_an_override_keeps_what_it_does_not_name(file: Callable[[str], Path]) -> None:
    roles = load_roles(
        file('[roles.isort]\nconcurrency = 9\n[roles.tidy]\nprovider = "openai"\nmodel = "m"\n')
    )
    shipped = load_roles()
    assert roles["isort"].options == shipped["isort"].options and roles["isort"].concurrency == 9
    assert roles["tidy"].options == {} and roles["tidy"].provider == "openai"


@pytest.mark.parametrize(
    ("content", "field", "reason"),
    [
        ("[roles", "roles.toml", "not TOML"),
        ("[rules.x]\n", "roles.toml", "unknown field `rules`"),
        ('[roles.docs]\nkind = "edit"\nmodle = "m"\n', "roles.docs", "unknown field `modle`"),
        ('[roles.docs]\nkind = "editor"\n', "roles.docs.kind", "'editor'"),
        ('[roles.git]\nkind = "edit"\n', "roles.git", "a name of convoy's own"),
        ('[roles.runner]\nkind = "test"\n', "roles.runner", "a name of convoy's own"),
        ('[roles.orchestrator]\nkind = "plan"\n', "roles.orchestrator", "a name of convoy's own"),
        ('[roles.projector]\nkind = "edit"\n', "roles.projector", "a name of convoy's own"),
        ('[roles.detector]\nkind = "merge"\n', "roles.detector", "a name of convoy's own"),
        ('[roles.human]\nkind = "review"\n', "roles.human", "a name of convoy's own"),
        ('[roles.docs]\nmodel = "m"\n', "roles.docs.kind", "needs a kind"),
        ('[roles.generator]\nkind = "review"\n', "roles.generator.kind", "of kind edit"),
        ("[roles.generator]\nconcurrency = 0\n", "roles.generator.concurrency", "0 is not between"),
        ('[roles.generator]\nconcurrency = "many"\n', "roles.generator.concurrency", "Expected"),
        (
            '[roles.generator]\nprompt = "a"\nprompt_file = "b"\n',
            "roles.generator.prompt_file",
            "prompt is given",
        ),
        ('[roles.generator]\nprompt_file = "none.md"\n', "roles.generator.prompt_file", "can't be read"),
        ('[roles.Docs]\nkind = "edit"\n', "role", "'Docs' is not a role name"),
        ("[defaults]\nmodels = 1\n", "defaults", "unknown field `models`"),
        ("[roles.docs]\nkind = 'edit'\noptions = { argv = { a = 1 } }\n", "roles.docs.options", "Expected"),
        ("roles = 3\n", "roles.toml.roles", "Expected"),
        (
            "[[roles.generator.next]]\nmodel = 'm'\n",
            "roles.generator.next",
            "missing required field `provider`",
        ),
        (9 * "[[defaults.next]]\nprovider = 'openai'\n", "defaults.next", "9 are more than 8"),
    ],
)
def test_a_bad_file_is_told_by_field(
    file: Callable[[str], Path], content: str, field: str, reason: str
) -> None:
    with pytest.raises(BadInput) as caught:
        load_roles(file(content))
    assert field in caught.value.field and reason in caught.value.reason and caught.value.remedy


@pytest.mark.parametrize("kind", ['"edt"', "3"])
def test_a_bad_kind_is_told_with_the_kinds(file: Callable[[str], Path], kind: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_roles(file(f"[roles.docs]\nkind = {kind}\n"))
    assert caught.value.field == "roles.docs.kind"
    assert caught.value.remedy == "Use one of: edit, review, test, merge, plan"


COMMAND = '[roles.docs]\nkind = "edit"\nprovider = "command"\n'


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (COMMAND + 'options = { argv = "python3 -c 1" }\n', "roles.docs.options.argv"),
        (COMMAND + "options = { argv = true }\n", "roles.docs.options.argv"),
        (COMMAND + 'options = { argv = "it\'s" }\n', "roles.docs.options.argv"),
        (
            '[defaults]\nprovider = "command"\n[roles.generator]\noptions = { argv = "python3 -c 1" }\n',
            "roles.generator.options.argv",
        ),
        (
            COMMAND + '[[roles.docs.next]]\nprovider = "command"\noptions = { argv = "python3 -c 1" }\n',
            "roles.docs.next[0].options.argv",
        ),
    ],
)
def test_a_program_is_given_as_a_list(file: Callable[[str], Path], content: str, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_roles(file(content))
    assert caught.value.field == field and "not a list" in caught.value.reason
    split = '["python3", "-c", "1"]' if "python3" in content else '["my-agent", "--json"]'
    assert caught.value.remedy == f"Write argv = {split}"


def test_options_of_a_package_s_provider_are_its_own(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, providers="MyAgent")
    entry = '[roles.docs]\nkind = "edit"\nprovider = "mine"\noptions = { argv = "a b", foo = 1 }\n'
    agent = make_agent(load_roles(file(entry))["docs"], {})
    assert isinstance(agent, MyAgent) and agent.role.options == {"argv": "a b", "foo": "1"}


def test_no_file() -> None:
    with pytest.raises(BadInput, match="can't be read"):
        load_roles(Path("none.toml"))


def role(provider: str, model: str = "m", **options: str) -> Role:
    return Role(name="r", kind=RoleKind.EDIT, description="", provider=provider, model=model, options=options)


@pytest.mark.parametrize(
    ("made", "field", "reason"),
    [
        (role(""), "roles.r.provider", "no provider is set"),
        (role("gpt"), "roles.r.provider", "'gpt' is not known"),
        (role("openai", model=""), "roles.r.model", "needs a model"),
        (role("anthropic", key="team"), "roles.r.provider", "no key 'team'"),
        (role("openai", base_url="http://h/v1", key="team"), "roles.r.provider", "no key 'team'"),
        (role("openai", base_url="h:8000"), "roles.r.options.base_url", "can't be used"),
        (role("openai", api="soap"), "roles.r.options.api", "can't be used"),
        (role("openai", max_output_tokens="-1"), "roles.r.options.max_output_tokens", "can't be used"),
        (role("openai", temperature="warm"), "roles.r.options.temperature", "can't be used"),
        (role("openai", stream="no"), "roles.r.options.stream", "can't be used"),
        (role("anthropic", idle_seconds="0.0"), "roles.r.options.idle_seconds", "can't be used"),
        (role("anthropic", temperature="0"), "roles.r.options.temperature", "no option"),
        (role("openai", validators="none"), "roles.r.options.validators", "'none' is not known"),
        (role("command"), "roles.r.options.argv", "needs a program"),
        (role("command", argv="'"), "roles.r.options.argv", "can't be split"),
        (role("command", argv="no-such-program-here"), "roles.r.options.argv", "there is no program"),
        (role("command", argv="sh", rules="x"), "roles.r.options.rules", "no option"),
        (role("codemod", rules="none"), "roles.r.options.rules", "not a rule set"),
        (role("codemod", rules="ruff:UP", foo="1"), "roles.r.options.foo", "no option"),
        (role("codemod", rules="ruff:ZZZZ"), "roles.r.options.rules", "does not take 'ZZZZ'"),
    ],
)
def test_a_role_that_can_not_be_done_is_told_at_start(made: Role, field: str, reason: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_agent(made, KEYS)
    assert caught.value.field == field and reason in caught.value.reason and caught.value.remedy


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (role("command", argv="sh", rules="x"), "roles.r.options.rules"),
        (role("codemod", rules="none"), "roles.r.options.rules"),
        (role("codemod", rules="ruff:UP", target_version="py2"), "roles.r.options.target_version"),
    ],
)
def test_who_submits_a_job_is_told_of_bad_options_too(made: Role, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_declared(made, KEYS)
    assert caught.value.field == field
    check_declared(role("codemod", rules="ruff:UP"), KEYS)
    check_declared(role("command", argv="sh"), KEYS)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_missing_key_is_told_at_start_unless_the_server_is_one_s_own(provider: str) -> None:
    with pytest.raises(BadInput, match=f"no key '{provider}'"):
        make_agent(role(provider), {})
    assert isinstance(make_agent(role(provider, base_url="http://127.0.0.1:1/v1"), {}), ModelAgent)


def test_a_model_s_provider_can_be_wrapped() -> None:
    wrapped: list[str] = []

    def wrap(role: Role, provider: Provider) -> Provider:
        wrapped.append(f"{role.name} {provider.name}")
        return provider

    make_agent(role("openai"), KEYS, wrap=wrap)
    assert wrapped == ["r openai"]


@pytest.mark.parametrize("attribute", ["A_ROLE", "plain_role", "several_roles"])
def test_roles_of_installed_packages(monkeypatch: pytest.MonkeyPatch, attribute: str) -> None:
    install(monkeypatch, roles=attribute)
    roles = load_roles()
    assert roles["docs"].description == "from a package"
    assert roles["generator"].provider == ("mine" if attribute == "several_roles" else "")


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("NO_ROLE", "not Role"),
        ("missing", "it fails"),
        ("fails", "it fails"),
        ("A_TAKEN_NAME", "'git' is a name"),
    ],
)
def test_a_package_whose_roles_fail_is_named(
    monkeypatch: pytest.MonkeyPatch, attribute: str, reason: str
) -> None:
    install(monkeypatch, roles=attribute)
    with pytest.raises(BadInput, match=reason) as caught:
        load_roles()
    assert "'mine'" in caught.value.field


def test_providers_and_validators_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, providers="MyAgent", validators="objector")
    agent: Agent = make_agent(role("mine"), {})
    assert isinstance(agent, MyAgent)
    model = make_agent(role("openai", validators="mine"), KEYS)
    assert isinstance(model, ModelAgent) and model._validators[-1] is objector
    with pytest.raises(BadInput, match="codemod, openai, anthropic, command, mine"):
        make_agent(role("other"), {})
