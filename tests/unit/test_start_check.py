"""A key or a model that a server does not know is said at start; an outage is none of the two."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from codeconvoy.orchestrator.local_fleet import choose_roles
from codeconvoy.orchestrator.processes import free_ports
from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.llm.provider import CallFailed, Credentials, Failure
from codeconvoy.workers.roles import start_check
from codeconvoy.workers.roles.role import NextProvider, Role, RoleKind
from codeconvoy.workers.roles.start_check import Checked, check_models
from tests.models_endpoint import KEY, endpoint

PROVIDERS = ("openai", "anthropic")
KEYS = dict.fromkeys(PROVIDERS, KEY)


def role(provider: str, url: str, model: str = "known", name: str = "r", **options: str) -> Role:
    base = url + ("/v1" if provider == "openai" else "")
    return Role(name, RoleKind.EDIT, "", provider, model=model, options={"base_url": base, **options})


def check(*roles: Role, keys: Credentials = KEYS, seconds: float = 20.0) -> Mapping[str, tuple[Checked, ...]]:
    return asyncio.run(check_models(roles, keys, seconds))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_is_known_is_fine(provider: str) -> None:
    with endpoint("known") as server:
        [said] = check(role(provider, server.url))["r"]
    assert said.bad is None and said.note == "" and server.asked == ["known"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_wrong_key_is_told_and_not_shown(provider: str) -> None:
    with endpoint("known") as server:
        [said] = check(role(provider, server.url), keys=dict.fromkeys(PROVIDERS, "sk-wrong"))["r"]
        server.status = 403
        [forbidden] = check(role(provider, server.url))["r"]
    for one in (said, forbidden):
        assert one.bad is not None and one.bad.field == "roles.r.provider" and not one.note
        assert "key is not accepted" in one.bad.reason and "check_at_start" in one.bad.remedy
        assert "sk-wrong" not in str(one.bad)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_model_that_does_not_exist_is_told_by_field(provider: str) -> None:
    with endpoint("known") as server:
        first = replace(role(provider, server.url), next=(NextProvider(provider, "gone", {}),))
        further = replace(first.next[0], options=first.options)
        known, unknown = check(replace(first, next=(further,)))["r"]
        server.missing = {"error": {"code": "model_not_found", "message": "no"}}
        [other] = check(role(provider, server.url, "gone"))["r"]
    assert known.bad is None
    assert unknown.bad is not None and unknown.bad.field == "roles.r.next[0].model"
    assert "no model 'gone'" in unknown.bad.reason
    assert other.bad is not None and other.bad.field == "roles.r.model"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "missing", [{"detail": "Not Found"}, {"error": {"message": "Invalid URL (GET /v1/models/gone)"}}]
)
def test_a_server_without_the_endpoint_is_only_noted(provider: str, missing: Mapping[str, object]) -> None:
    with endpoint() as server:
        server.missing = missing
        [said] = check(role(provider, server.url, "gone"))["r"]
    assert said.bad is None and said.note


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_outage_is_only_noted(provider: str) -> None:
    with endpoint("known") as server:
        server.status = 503
        [down] = check(role(provider, server.url))["r"]
        server.status = 429
        [busy] = check(role(provider, server.url))["r"]
    [port] = free_ports(1)
    [away] = check(role(provider, f"http://127.0.0.1:{port}"))["r"]
    for one in (down, busy, away):
        assert one.bad is None and one.note


def test_the_vendor_s_own_server_has_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    class Vendor:
        async def look_up(self, model: str, seconds: float) -> None:
            raise CallFailed(Failure.REJECTED, "not found", status=404)

        async def close(self) -> None:
            """Nothing is held."""

    monkeypatch.setattr(start_check, "knowing", lambda role, credentials: Vendor())
    [said] = check(Role("r", RoleKind.EDIT, "", "openai", model="m"))["r"]
    assert said.bad is not None and said.bad.field == "roles.r.model"


def test_each_model_is_asked_once_and_none_where_a_role_says_so() -> None:
    with endpoint("known") as server:
        roles = [role("openai", server.url, name=name) for name in ("a", "b")]
        quiet = role("anthropic", server.url, "gone", "c", check_at_start="false")
        said = check(*roles, quiet, Role("d", RoleKind.EDIT, "", "codemod"))
    assert server.asked == ["known"]
    assert all(one.bad is None for checks in said.values() for one in checks)


def test_up_leaves_out_what_can_not_run_and_refuses_what_was_asked_for() -> None:
    with endpoint("known") as server:
        roles = {
            "good": role("openai", server.url, name="good"),
            "gone": role("openai", server.url, "gone", name="gone"),
            "none": Role("none", RoleKind.EDIT, "", ""),
        }
        started, left, notes = asyncio.run(choose_roles(roles, KEYS, None))
        assert (started, notes) == (("good",), ()) and set(left) == {"gone", "none"}
        with pytest.raises(BadInput, match="no model 'gone'"):
            asyncio.run(choose_roles(roles, KEYS, "good,gone"))
        for nothing in ("", " ,"):
            with pytest.raises(BadInput, match="none is named"):
                asyncio.run(choose_roles(roles, KEYS, nothing))
        server.status = 503
        started, left, notes = asyncio.run(choose_roles(roles, KEYS, "good"))
    assert started == ("good",) and not left and len(notes) == 1
