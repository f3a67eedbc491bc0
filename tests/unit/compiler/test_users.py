"""A domain's simulated user is a role of the jobs that act in it, behind an endpoint, and changes what they compute."""

from pathlib import Path

import pytest
import yaml
from polymath.compiler.driver import compile_in_memory
from polymath.compiler.plan import Plan
from polymath.specs.diagnostics import SpecInvalid

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke.yaml"
WORLD = ("domains.tools.world=tool_subgraphs", "domains.tools.settings={people: 40}")


def compiled(*changes: str) -> Plan:
    return compile_in_memory(SMOKE, (*WORLD, *changes)).plan


def test_the_jobs_that_act_ask_the_user_where_the_environment_says() -> None:
    plan = compiled("domains.tools.user={url_env: USER_URL, model: talker}")
    asking = {job.id for job in plan.jobs if "user.tools" in job.roles}
    assert asking == {
        job.id for job in plan.jobs if job.kind in ("grpo", "distill", "evaluate") and "tools" in job.settings["domains"]
    }
    (role,) = {(job.roles["user.tools"].url_env, job.roles["user.tools"].engine) for job in plan.jobs if job.id in asking}
    assert role == ("USER_URL", "talker")
    assert all(job.roles["user.tools"].devices == 0 for job in plan.jobs if job.id in asking)


def test_another_user_is_another_recipe_and_another_address_is_not() -> None:
    def digests(user: str) -> set[str]:
        return {job.recipe_digest for job in compiled(f"domains.tools.user={user}").jobs if "user.tools" in job.roles}

    first = digests("{url_env: USER_URL, model: talker}")
    assert digests("{url_env: OTHER_URL, model: talker}") == first
    assert digests("{url_env: USER_URL, model: thinker}").isdisjoint(first)


def test_only_a_world_with_a_user_takes_one() -> None:
    try:
        compile_in_memory(SMOKE, ("domains.tools.user={url_env: USER_URL, model: talker}",))
    except SpecInvalid as error:
        assert "world `tools` has no user" in error.message and "tool_subgraphs has" in error.message
    else:
        raise AssertionError("world `tools` took a user")


PLAYED = "domains.tools.trajectories=[{synthesize: 9}, {name: clean, synthesize: 9}, {name: solved, synthesize: 9, self_play: %s}]"
ENDPOINT = "{url_env: A_URL, model: m}"


def test_a_model_that_solves_in_self_play_meets_the_user_and_programs_do_not() -> None:
    def asking(players: str) -> set[str]:
        plan = compiled(PLAYED % players, "domains.tools.user={url_env: USER_URL, model: talker}")
        return {job.id for job in plan.jobs if job.kind == "synthesize" and "user.tools" in job.roles}

    assert asking(f"{{solver: {ENDPOINT}}}") == {"synthesize.tools.solved"}
    assert asking(f"{{proposer: {ENDPOINT}}}") == set()


def test_a_user_whom_nobody_talks_with_is_refused(tmp_path: Path) -> None:
    user = {"url_env": "USER_URL", "model": "talker"}
    spec = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    spec["student"] = {"sft": spec["student"]["sft"]}
    spec = {key: value for key, value in spec.items() if key not in ("teachers", "routing", "evaluate", "export")}
    spec["domains"]["own"] = {"world": "tool_subgraphs", "trajectories": [{"synthesize": 9}], "user": user}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    with pytest.raises(SpecInvalid, match="nobody talks with this user"):
        compile_in_memory(tmp_path / "own.yaml", ())
