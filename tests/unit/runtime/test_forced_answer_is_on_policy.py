"""After a roll-back every written token still has the probability that the policy gives it where it stands, by the real engine."""

import pytest
import torch
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.engines.protocol import SamplingSettings
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.rollouts import RolloutRequest, collect
from polymath.runtime.worlds.registry import make_world
from polymath.specs.model import Finalize, Limits, Model
from polymath.specs.reward import Reward
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

TOKENIZER = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    folder = tmp_path_factory.mktemp("model")
    config = Qwen3MoeConfig(
        vocab_size=TOKENIZER.vocabulary_size, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, max_position_embeddings=128, num_hidden_layers=2,
        norm_topk_prob=True, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3MoeForCausalLM(config).save_pretrained(folder)
    ids = {"pad_id": TOKENIZER.pad_id, "invalid_ids": sorted(TOKENIZER.invalid_ids), "num_tokens": len(TOKENIZER.hf)}
    return TransformersEngine(folder, tokenizer_digest=TOKENIZER.digest, **ids)


def test_a_forced_answer_is_drawn_from_the_policy_given_what_is_left_of_the_episode(engine: TransformersEngine) -> None:
    world = make_world("search", {})
    renderer = Renderer(TOKENIZER, world.tools)
    # A random policy hardly ever ends a turn: it fills the room before the one that is kept free, and is asked for its answer.
    limits = Limits(turns=4, response_tokens=24, context_tokens=48, finalize=Finalize(prompt="done"))
    tasks = world.tasks("train", 6, 0)
    requests = [RolloutRequest(domain="search", task=task, limits=limits, reward=Reward()) for task in tasks]
    plain = SamplingSettings(temperature=1.0, top_p=1.0)
    played = collect(engine, {"search": renderer}, {"search": world}, requests, plain, seed=3)
    asked = TOKENIZER.literal_ids("<user> done <model>")
    forced = [one for one in played if any(one.ids[place : place + len(asked)] == asked for place in range(len(one.ids)))]
    assert len(forced) > len(played) / 2
    for one, logprobs_T in zip(played, engine.score_tokens([one.ids for one in played]), strict=True):
        assert len(one.ids) <= limits.context_tokens and any(one.written)
        for place, (written, logprob) in enumerate(zip(one.written, one.logprobs, strict=True)):
            if written:
                assert logprob == pytest.approx(float(logprobs_T[place - 1]), abs=1e-4)
