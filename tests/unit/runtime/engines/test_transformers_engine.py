"""Promises of the embedded engine, on a random two-layer mixture of experts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, load_tokenizer_folder
from polymath.runtime.engines.protocol import Generation, SamplingSettings
from polymath.runtime.engines.transformers_engine import TransformersEngine, count_parameters
from polymath.runtime.engines.weights import Weights
from polymath.specs.diagnostics import UserError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM
from weight_streams import weights_of

VOCABULARY, PAD, STOP = 48, 0, 4
INVALID = (0, 1, 2)
PLAIN = SamplingSettings(temperature=1.0, top_p=1.0)
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 10, 11, 12], [20], [30, 31, 32, 33, 34]]


COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "max_position_embeddings": 128,
    "initializer_range": 0.3, "tie_word_embeddings": False,
}  # fmt: skip


def _save_model(folder: Path, seed: int, family: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "qwen3_moe":
            model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**COMMON, num_hidden_layers=2, norm_topk_prob=True)).eval()
        else:
            linear = {"num_key_heads": 1, "num_value_heads": 2, "key_head_dim": 16, "value_head_dim": 16}
            config = Qwen3_5MoeTextConfig(
                **COMMON,
                num_hidden_layers=3,
                layer_types=["linear_attention", "full_attention", "linear_attention"],
                shared_expert_intermediate_size=16,
                **{f"linear_{name}": number for name, number in linear.items()},
            )
            model = Qwen3_5MoeForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=["qwen3_moe", "qwen3_5_moe"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    _save_model(folder, seed=0, family=family)
    return folder


@pytest.fixture
def engine(folder: Path) -> TransformersEngine:
    return _engine(folder)


def _engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(folder, tokenizer_digest="digest", pad_id=PAD, invalid_ids=INVALID, num_tokens=VOCABULARY)


def _forward(folder: Path, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] by one plain forward pass of one sequence."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0].log_softmax(-1)


def _generate(engine: TransformersEngine, *, seed: int = 3, sampling: SamplingSettings = PLAIN) -> list[Generation]:
    return engine.generate(PROMPTS, limits=[12] * len(PROMPTS), sampling=sampling, stop_ids=[STOP], seed=seed)


# DeltaNet generates token by token and scores in chunks: in float32 each is 4e-5 off float64 here, with padding or without.
TOLERANCE = {"qwen3_moe": 1e-5, "qwen3_5_moe": 1e-4}


def test_recorded_logprobs_equal_a_plain_forward_whatever_the_padding(
    family: str, folder: Path, engine: TransformersEngine
) -> None:
    for prompt, generation in zip(PROMPTS, _generate(engine), strict=True):
        logprobs_TV = _forward(folder, [*prompt, *generation.ids])
        for position, (one, logprob) in enumerate(zip(generation.ids, generation.logprobs, strict=True), start=len(prompt) - 1):
            assert logprob == pytest.approx(logprobs_TV[position, one].item(), abs=TOLERANCE[family])


def test_padding_before_a_prompt_leaves_no_trace(folder: Path, engine: TransformersEngine) -> None:
    prompt = [5, 6, 7]
    greedy = SamplingSettings(temperature=0.0, top_p=1.0)
    for longest in (4, 7, 40):
        padded, _ = engine.generate([prompt, [9] * longest], limits=[12, 1], sampling=greedy, stop_ids=[STOP], seed=0)
        (alone,) = engine.generate([prompt], limits=[12], sampling=greedy, stop_ids=[STOP], seed=0)
        assert padded.ids == alone.ids and padded.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_recorded_logprobs_ignore_temperature_and_truncation(folder: Path, engine: TransformersEngine) -> None:
    for sampling in (SamplingSettings(temperature=0.5, top_p=0.7), SamplingSettings(temperature=0.0, top_p=1.0)):
        generation = _generate(engine, sampling=sampling)[1]
        logprobs_TV = _forward(folder, [*PROMPTS[1], *generation.ids])
        assert generation.logprobs[0] == pytest.approx(logprobs_TV[len(PROMPTS[1]) - 1, generation.ids[0]].item(), abs=1e-5)


def test_greedy_generation_does_not_depend_on_the_other_rows(engine: TransformersEngine) -> None:
    greedy = SamplingSettings(temperature=0.0, top_p=1.0)
    together = _generate(engine, sampling=greedy)
    for prompt, generation in zip(PROMPTS, together, strict=True):
        (alone,) = engine.generate([prompt], limits=[12], sampling=greedy, stop_ids=[STOP], seed=0)
        assert alone.ids == generation.ids


def test_a_generation_ends_at_its_own_limit_or_with_the_stop_token(engine: TransformersEngine) -> None:
    limits = [1, 9, 3, 30]
    stopped = 0
    for seed in range(5):
        generations = engine.generate(PROMPTS, limits=limits, sampling=PLAIN, stop_ids=[STOP], seed=seed)
        for generation, limit in zip(generations, limits, strict=True):
            assert len(generation.ids) == len(generation.logprobs) <= limit
            assert generation.stopped == (generation.ids[-1] == STOP)
            assert STOP not in generation.ids[:-1]
            assert generation.stopped or len(generation.ids) == limit
            stopped += generation.stopped
    assert stopped, "no row stopped, so the test proves little"


def test_the_seed_decides_and_the_callers_random_numbers_are_left_alone(engine: TransformersEngine) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = _generate(engine, seed=5)
    assert torch.equal(torch.rand(3), expected)
    assert _generate(engine, seed=5) == first
    assert _generate(engine, seed=6) != first


def test_a_prompt_that_goes_on_from_a_kept_row_is_answered_as_if_it_were_read_anew(
    family: str, folder: Path, engine: TransformersEngine
) -> None:
    greedy = SamplingSettings(temperature=0.0, top_p=1.0)

    def ask(one: TransformersEngine, prompts: list[list[int]]) -> list[Generation]:
        return one.generate(prompts, limits=[3, 12, 1, 5][: len(prompts)], sampling=greedy, stop_ids=[STOP], seed=0)

    prompts = PROMPTS
    for turn in range(4):  # rows end at different columns, change places, serve twice and disappear
        answers = ask(engine, prompts)
        for answer, expected in zip(answers, ask(_engine(folder), prompts), strict=True):
            assert answer.ids == expected.ids
            assert answer.logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE[family])
        more = [[*prompt, *answer.ids, *range(7, 8 + turn)] for prompt, answer in zip(prompts, answers, strict=True)]
        prompts = [more[-1], [*more[0], 9, 9, 9], more[0]]


def test_only_new_tokens_are_read_where_attention_is_the_only_state(family: str, engine: TransformersEngine) -> None:
    read: list[int] = []
    engine._model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    prompts = [[*range(5, 25)], [*range(9, 16)]]
    for expected in (20, 3 if family == "qwen3_moe" else 24):
        read.clear()
        answers = engine.generate(prompts, limits=[2, 2], sampling=PLAIN, stop_ids=[VOCABULARY], seed=1)
        assert read == [expected, 1]
        prompts = [[*prompt, *answer.ids, 7, 8][: len(prompt) + 4] for prompt, answer in zip(prompts, answers, strict=True)]
        expected_prompts = prompts
    engine.load_weights(weights_of(engine._model), policy_version=1)
    read.clear()
    engine.generate(expected_prompts, limits=[1, 1], sampling=PLAIN, stop_ids=[VOCABULARY], seed=1)
    assert read == [28]  # other weights: nothing that is kept holds


def test_samples_follow_the_policy(folder: Path, engine: TransformersEngine) -> None:
    count = 4000
    prompt = [5, 6, 7]
    generations = engine.generate([prompt] * count, limits=[1] * count, sampling=PLAIN, stop_ids=[STOP], seed=1)
    frequency_V = torch.bincount(torch.tensor([one.ids[0] for one in generations]), minlength=VOCABULARY) / count
    assert (frequency_V - _forward(folder, prompt)[-1].exp()).abs().max() < 0.04  # five standard errors at p = 0.5


def test_top_k_scores_are_the_most_likely_valid_tokens_of_a_plain_forward(folder: Path, engine: TransformersEngine) -> None:
    for sequence, top in zip(PROMPTS[:2], engine.score_top_k(PROMPTS[:2], 6), strict=True):
        logprobs_TV = _forward(folder, sequence)[:-1]
        logprobs_TV[:, list(INVALID)] = -torch.inf
        expected = logprobs_TV.topk(6, dim=-1)
        assert torch.equal(top.ids_TK, expected.indices)
        assert torch.allclose(top.logprobs_TK, expected.values, atol=1e-5)


def test_a_support_of_all_valid_tokens_is_allowed_and_one_more_is_refused(engine: TransformersEngine) -> None:
    (top,) = engine.score_top_k([[5, 6]], VOCABULARY - len(INVALID))
    assert set(top.ids_TK[0].tolist()) == set(range(VOCABULARY)) - set(INVALID)
    with pytest.raises(UserError, match="only 45 of the 48 ids") as caught:
        engine.score_top_k([[5, 6]], VOCABULARY - len(INVALID) + 1)
    assert caught.value.exit_code == 3


def test_rows_of_the_head_beyond_the_tokenizer_are_in_no_support(folder: Path) -> None:
    engine = TransformersEngine(folder, tokenizer_digest="digest", pad_id=PAD, invalid_ids=INVALID, num_tokens=VOCABULARY - 7)
    (top,) = engine.score_top_k([[5, 6]], engine.valid_ids)
    assert set(top.ids_TK[0].tolist()) == set(range(VOCABULARY - 7)) - set(INVALID)


def test_token_scores_do_not_depend_on_how_they_are_batched(
    folder: Path, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [*PROMPTS[:2], [7, 7, 7, 7], [40, 41]]
    whole = engine.score_tokens(sequences)
    for sequence, scores in zip(sequences, whole, strict=True):
        expected = _forward(folder, sequence)[:-1].gather(1, torch.tensor(sequence[1:])[:, None]).squeeze(1)
        assert torch.allclose(scores, expected, atol=1e-5)
    monkeypatch.setattr("polymath.runtime.engines.transformers_engine.SCORE_TOKENS", 8)
    monkeypatch.setattr("polymath.runtime.engines.transformers_engine.LOGIT_BUDGET", 3 * VOCABULARY)
    for scores, again in zip(whole, engine.score_tokens(sequences), strict=True):
        assert torch.allclose(scores, again, atol=1e-5)


def test_loaded_weights_answer_and_carry_their_version(family: str, engine: TransformersEngine, tmp_path: Path) -> None:
    other = _save_model(tmp_path, 9, family)
    assert engine.identity().policy_version == 0
    engine.load_weights(Weights([other.state_dict()]), policy_version=7)
    assert engine.identity().policy_version == 7
    assert torch.equal(engine.score_tokens([PROMPTS[1]])[0], _engine(tmp_path).score_tokens([PROMPTS[1]])[0])


def test_weights_that_do_not_fit_replace_nothing(family: str, engine: TransformersEngine, tmp_path: Path) -> None:
    before = engine.score_tokens([PROMPTS[1]])[0]
    weights = dict(_save_model(tmp_path, 9, family).state_dict())
    weights.pop("model.layers.1.mlp.experts.down_proj")
    with pytest.raises(ValueError, match=r"missing \['model.layers.1.mlp.experts.down_proj'\]"):
        engine.load_weights(Weights([weights]), policy_version=7)
    assert engine.policy_version == 0
    assert torch.equal(engine.score_tokens([PROMPTS[1]])[0], before)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="safetensors") as caught:
        _engine(tmp_path)
    assert caught.value.exit_code == 3


def test_a_model_too_large_to_embed_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(30, 40)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    assert count_parameters(tmp_path) == 1200
    monkeypatch.setattr("polymath.runtime.engines.transformers_engine.LARGEST_PARAMETERS", 1000)
    with pytest.raises(UserError, match="embedded engine") as caught:
        _engine(tmp_path)
    assert caught.value.exit_code == 5


def test_code_in_a_model_s_folder_is_never_run(tmp_path: Path) -> None:
    tokenizer = load_tokenizer_folder(BUILTIN_FOLDERS["builtin:bytes"])
    _save_model(tmp_path, seed=0, family="qwen3_moe")
    tokenizer.save(tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(config | {"auto_map": dict.fromkeys(names, "own.Own")}))
    assert _generate(_engine(tmp_path))
    assert load_tokenizer_folder(tmp_path).digest == tokenizer.digest
    assert not (tmp_path / "ran").exists()
