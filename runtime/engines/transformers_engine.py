"""The embedded engine: a full copy of the model in this process, on `transformers`.

What it does: batched generation with a key-value cache through `model.generate`, and teacher-forced scores. A prompt that goes on
from what was generated last costs its new tokens only (`kept_rows.py`).
What it does not do: loop over tokens itself, shard a model, or hold one that is too large to be copied to every rank.
It loads safetensors from a local folder and runs no code from it.

Measured on one core (0.16 M parameters, 2 layers, 4 experts): 7 ms per step of 768 rows, 80,000 prompt tokens per second. `eager`
experts decode twice as fast there as `grouped_mm`; `batched_mm` copies the experts' weights per token and takes seconds.

Shapes: B rows, L positions of a row, T tokens of one sequence, V vocabulary, K tokens of the support, P selected positions,
E experts, C of them that a token visits, Y layers with experts.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.utils.logging import disable_progress_bar

from ...specs.diagnostics import ExitCode, UserError
from .kept_rows import KeptRows
from .protocol import Capabilities, Generation, Identity, SamplingSettings, TopK, Traffic
from .supports import require_support
from .weights import Weights

LARGEST_PARAMETERS = 2_000_000_000  # a float32 copy is 8 GB in every rank's process
LOGIT_BUDGET = 2**25  # float32 logits held at once while scoring: 128 MiB, and as much again for their softmax
PREFILL_TOKENS = 2**16  # padded prompt tokens of one batch of generation
COLUMNS_PER_PROMPT_TOKEN = 4  # a kept row with more holes than this is read anew: attention goes over holes too
SCORE_TOKENS = 2**15  # padded tokens of one forward pass while scoring


class TransformersEngine:
    """An `Engine`. See `protocol.py` for what each method promises."""

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer_digest: str,
        pad_id: int,
        invalid_ids: Collection[int],
        num_tokens: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
        policy_version: int = 0,
    ) -> None:
        """Load a Hugging Face folder.

        Args:
            folder: `config.json` and `*.safetensors`.
            tokenizer_digest: of the tokenizer that the ids belong to.
            pad_id: any id; attention never sees padding.
            invalid_ids: ids that the assistant may never write; no support holds them. Rollouts are drawn from the plain policy.
            num_tokens: tokens of the tokenizer; rows of the head from here on are padding, and no support holds them either.
            dtype: of weights and activations.
            policy_version: what the loaded weights are called.

        Raises:
            UserError: no safetensors in the folder, or a model too large to be embedded.
        """
        parameters = count_parameters(folder)
        if parameters > LARGEST_PARAMETERS:
            raise UserError(
                f"{folder} has {parameters / 1e9:.1f} billion parameters; the embedded engine `transformers` keeps a full copy "
                f"in every rank and takes at most {LARGEST_PARAMETERS / 1e9:.0f} billion",
                exit_code=ExitCode.UNFIT,
                fix="use an engine of its own process for rollouts and scores, or a smaller model",
            )
        self._folder = folder
        self._device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        disable_progress_bar()  # transformers would draw one per engine and rank
        with torch.random.fork_rng(devices=[]):  # loading must not advance the caller's random numbers
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                experts_implementation="eager" if self._device.type == "cpu" else "grouped_mm",
            )
        self._model = self._model.to(self._device).eval().requires_grad_(False)
        self._model.generation_config = GenerationConfig()  # the folder's own sampling defaults never apply
        self._tokenizer_digest = tokenizer_digest
        self._pad_id = pad_id
        self._vocabulary = int(self._model.config.vocab_size)
        self._invalid_V = torch.zeros(self._vocabulary, dtype=torch.bool, device=self._device)
        self._invalid_V[[one for one in invalid_ids if one < self._vocabulary]] = True
        self._invalid_V[num_tokens:] = True
        self.valid_ids = self._vocabulary - int(self._invalid_V.sum())
        self.capabilities = Capabilities(full_vocabulary_scores=True, expert_choices=True, embedded=True)
        self.policy_version = policy_version
        self.traffic = Traffic()
        self._kept: KeptRows | None = None

    def identity(self) -> Identity:
        """Who is answering."""
        return Identity(
            tokenizer_digest=self._tokenizer_digest,
            vocabulary=self._vocabulary,
            weights=str(self._folder),
            policy_version=self.policy_version,
        )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        limits: Sequence[int],
        sampling: SamplingSettings,
        stop_ids: Sequence[int],
        seed: int,
    ) -> list[Generation]:
        """Continue each prompt by at most its limit of tokens, until a stop token.

        The same call gives the same tokens; a row's tokens do depend on the other rows, which share its random numbers.
        """
        assert len(prompts) == len(limits) and all(prompts) and all(limit >= 1 for limit in limits)
        results: list[Generation | None] = [None] * len(prompts)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` also formats a stack for devices that are not there
            if self._device.type == "cuda":
                torch.cuda.manual_seed(seed)
            for rows in _chunks([len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)], PREFILL_TOKENS):
                generations = self._generate_rows([prompts[row] for row in rows], [limits[row] for row in rows], sampling, stop_ids)
                for row, generation in zip(rows, generations, strict=True):
                    results[row] = generation
        return [generation for generation in results if generation is not None]

    def _generate_rows(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], sampling: SamplingSettings, stop_ids: Sequence[int]
    ) -> list[Generation]:
        cache, ids_BL, own_BL = self._read(prompts, COLUMNS_PER_PROMPT_TOKEN * max(len(prompt) for prompt in prompts))
        read = ids_BL.shape[1]
        recorder = _RecordLogprobs()
        greedy = sampling.temperature == 0
        sequences_BL = self._model.generate(
            input_ids=ids_BL,
            attention_mask=own_BL.long(),  # position ids follow from it: transformers counts the ones
            past_key_values=cache,
            logits_processor=LogitsProcessorList([recorder]),  # comes before temperature and top_p, so it sees raw logits
            generation_config=GenerationConfig(
                max_new_tokens=max(limits),
                do_sample=not greedy,
                temperature=None if greedy else sampling.temperature,
                top_p=None if greedy else sampling.top_p,
                top_k=None if greedy else 0,
                eos_token_id=list(stop_ids),
                pad_token_id=self._pad_id,
                use_cache=True,
            ),
        )
        written_BL = sequences_BL[:, read:]
        logprobs = recorder.finish(written_BL).tolist()
        stops = frozenset(stop_ids)
        generations: list[Generation] = []
        for row, (ids, limit) in enumerate(zip(written_BL.tolist(), limits, strict=True)):
            end = next((position + 1 for position, one in enumerate(ids[:limit]) if one in stops), None)
            length = end or limit
            generations.append(Generation(ids=tuple(ids[:length]), logprobs=tuple(logprobs[row][:length]), stopped=end is not None))
        length_B1 = torch.tensor([[len(generation.ids)] for generation in generations], device=self._device)
        own_BL = torch.cat([own_BL, torch.arange(written_BL.shape[1], device=self._device)[None] < length_B1], dim=1)
        sequences = [(*prompt, *generation.ids) for prompt, generation in zip(prompts, generations, strict=True)]
        self._kept = KeptRows.of_generation(cache, sequences_BL, own_BL, sequences)
        return generations

    def _read(self, prompts: Sequence[Sequence[int]], columns: int) -> tuple[DynamicCache, Tensor, Tensor]:
        """A cache, ids and own columns [B, L] of the prompts; the cache holds their first columns, or nothing yet."""
        kept, self._kept = self._kept, None
        if kept is not None and (extended := kept.extended(prompts, self._pad_id, columns)) is not None:
            return kept.cache, *extended
        longest = max(len(prompt) for prompt in prompts)
        ids_BL = torch.tensor([[self._pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        length_B1 = torch.tensor([[len(prompt)] for prompt in prompts])
        own_BL = torch.arange(longest)[None] >= longest - length_B1
        return DynamicCache(config=self._model.config), ids_BL.to(self._device), own_BL.to(self._device)

    @torch.inference_mode()
    def score_top_k(self, sequences: Sequence[Sequence[int]], k: int) -> list[TopK]:
        """The k most likely valid tokens after every prefix of each sequence, with their log-probabilities.

        Raises:
            UserError: fewer than k ids are valid.
        """
        require_support(k, self.valid_ids, self._vocabulary, self._folder)

        def most_likely(logprobs_PV: Tensor, _: Tensor) -> tuple[Tensor, ...]:
            top = logprobs_PV.masked_fill(self._invalid_V, -torch.inf).topk(k, dim=-1)
            return top.indices.cpu(), top.values.cpu()

        return [TopK(ids_TK=ids, logprobs_TK=logprobs) for ids, logprobs in self._score(sequences, most_likely)]

    @torch.inference_mode()
    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """float32 [T-1] each: the log-probability of every token but the first."""

        def of_the_next(logprobs_PV: Tensor, next_P: Tensor) -> tuple[Tensor, ...]:
            return (logprobs_PV.gather(1, next_P[:, None]).squeeze(1).cpu(),)

        return [scores for (scores,) in self._score(sequences, of_the_next)]

    @torch.inference_mode()
    def expert_choices(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """int64 [T, Y, C] each: the experts that every token visits in each layer that has experts."""
        visited = self._model.config.num_experts_per_tok
        choices = []
        for sequence in sequences:
            found = self._model.model(
                input_ids=torch.tensor([list(sequence)], device=self._device), use_cache=False, output_router_logits=True
            )
            choices.append(torch.stack([layer_TE.topk(visited, dim=-1).indices.cpu() for layer_TE in found.router_logits], dim=1))
        return choices

    def _score(self, sequences: Sequence[Sequence[int]], reduce: Any) -> list[tuple[Tensor, ...]]:
        """Apply `reduce(logprobs_PV, next_P)` to every position but the last of each sequence, in bounded memory."""
        assert all(len(sequence) >= 2 for sequence in sequences)
        results: list[tuple[Tensor, ...]] = [()] * len(sequences)
        step = max(1, LOGIT_BUDGET // self._vocabulary)
        for rows in _chunks([len(sequence) for sequence in sequences], SCORE_TOKENS):
            lengths = [len(sequences[row]) for row in rows]
            longest = max(lengths)
            ids_BL = torch.tensor(
                [list(sequences[row]) + [self._pad_id] * (longest - length) for row, length in zip(rows, lengths, strict=True)]
            )
            # Causal attention never looks at the padding behind a sequence, so no mask is needed.
            hidden_BLD = self._model.model(input_ids=ids_BL.to(self._device), use_cache=False).last_hidden_state
            predicts_BL = torch.arange(longest)[None] < torch.tensor(lengths)[:, None] - 1
            hidden_PD = hidden_BLD[predicts_BL.to(self._device)]
            next_P = ids_BL[:, 1:][predicts_BL[:, :-1]].to(self._device)
            parts = [
                reduce(
                    self._model.lm_head(hidden_PD[start : start + step]).float().log_softmax(dim=-1), next_P[start : start + step]
                )
                for start in range(0, len(next_P), step)
            ]
            columns = [torch.cat(column).split([length - 1 for length in lengths]) for column in zip(*parts, strict=True)]
            for row, values in zip(rows, zip(*columns, strict=True), strict=True):
                results[row] = tuple(value.clone() for value in values)  # a view would keep the whole chunk alive
        return results

    @torch.no_grad()
    def load_weights(self, weights: Weights, *, policy_version: int) -> None:
        """Replace the weights, each in its place as it comes; tied ones may be given once. Collective where weights are sharded.

        Raises:
            ValueError: a weight is missing, unknown or of another shape. Nothing was replaced then.
        """
        own = dict(self._model.named_parameters())
        given = weights.described()
        missing = own.keys() - given.keys()
        unknown = given.keys() - self._model.state_dict().keys()
        misshapen = [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
        if missing or unknown or misshapen:
            raise ValueError(
                f"weights do not fit {self._folder}: missing {sorted(missing)}, unknown {sorted(unknown)}, "
                f"of another shape {sorted(misshapen)}"
            )
        self._kept = None
        for name, tensor in weights:
            if name in own:
                own[name].copy_(tensor)
            del tensor  # before the next is gathered
        self.policy_version = policy_version  # last: a version is only ever told of weights that are all there

    def close(self) -> None:
        """Forget the model."""
        self._model, self._kept = None, None


class _RecordLogprobs(LogitsProcessor):
    """Notes the log-probability of each sampled token, and keeps one step's distribution instead of all of them."""

    def __init__(self) -> None:
        self._previous_BV: Tensor | None = None
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._note(input_ids[:, -1])
        self._previous_BV = scores.float().log_softmax(dim=-1)
        return scores

    def finish(self, written_BL: Tensor) -> Tensor:
        """float32 [B, L], one per written token."""
        self._note(written_BL[:, -1])
        return torch.stack(self._logprobs, dim=1)

    def _note(self, token_B: Tensor) -> None:
        if self._previous_BV is not None:
            self._logprobs.append(self._previous_BV.gather(1, token_B[:, None]).squeeze(1))


def _chunks(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows in batches of similar length, longest first, whose padded size stays within the budget (or is one row)."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    while order:
        count = max(1, budget // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]


def count_parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors, read from their headers alone.

    Raises:
        UserError: the folder holds none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is not a Hugging Face model folder with safetensors",
            exit_code=ExitCode.SPEC,
            fix="it needs config.json and *.safetensors; pickled weights (.bin, .pt) are never loaded",
        )
    total = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                size = 1
                for extent in tensors.get_slice(name).get_shape():
                    size *= extent
                total += size
    return total
