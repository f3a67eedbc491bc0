"""The codes of mistakes. Append only: a code keeps its meaning for ever; `docs/errors.md` is this table."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """What a code means."""

    title: str
    doc: str


CODES: dict[str, Code] = {
    # Reading YAML
    "E0101": Code("not valid YAML", "The file breaks the grammar of YAML; the place is where the parser gave up."),
    "E0102": Code("duplicate key", "A mapping sets one key twice. Most parsers keep the last silently; here it is a mistake."),
    "E0103": Code("anchor or alias", "Anchors (`&x`) and aliases (`*x`) are not part of the language. Write the value out."),
    "E0104": Code("tag", "Tags (`!x`) are not part of the language: a spec never names types or code."),
    "E0105": Code("key is not text", "A key reads as a number, true, false or nothing, or is a list or mapping. Quote it."),
    "E0106": Code("more than one document", "A file holds one spec; remove what follows the second `---`."),
    "E0107": Code("nested too deeply", "Lists and mappings are nested more than 32 levels deep; no spec needs that."),
    "E0108": Code("file too large", "A spec may hold at most 256 KiB. Data belongs into files that the spec names."),
    "E0109": Code(
        "forbidden character", "The file is not UTF-8, or holds control or bidirectional characters that hide what it says."
    ),
    "E0110": Code("specs extend each other", "Following `extends` leads back to the same file."),
    "E0111": Code(
        "extended spec is elsewhere",
        "`extends` names a file in the folder of the spec that is compiled, or below it: never a URL, and nothing that `..` or a "
        "link leads out to, so that what a spec says can be read in one place.",
    ),
    "E0112": Code("no such spec", "The file that `extends` names does not exist or cannot be read."),
    # Form
    "E0201": Code("unknown field", "The language has no field of this name here. Nothing you write is ever ignored."),
    "E0202": Code("wrong type", "The value has another type than the field, such as text where a number is wanted."),
    "E0203": Code("missing field", "A field without a default is not set."),
    "E0204": Code("value not allowed", "The field takes one of a few values, and this is none of them."),
    "E0205": Code("out of range", "The number is outside the field's limits."),
    "E0206": Code("malformed name", "The text does not match the field's pattern; names are lower-case words."),
    "E0207": Code("too few items", "The list or mapping needs more items."),
    "E0208": Code("unknown name", "The text must name a domain or teacher of this spec."),
    "E0209": Code("named twice", "A list of names holds one name twice."),
    "E0210": Code("nothing at this path", "`--set` names a path that the language or this spec does not have."),
    # Meaning
    "E0301": Code("needs exactly one of epochs and steps", "An SFT stage is as long as its `epochs` or its `steps` say; set one."),
    "E0302": Code("needs exactly one of path and synthesize", "Trajectories come from a file or from the world's oracle; set one."),
    "E0303": Code("setting without effect", "The setting only applies to another choice made beside it, so it would be ignored."),
    "E0304": Code(
        "unclear size",
        "Exactly one place says how large a model is: `shape` or `size` of a random one, config.json or `size` of a checkpoint.",
    ),
    "E0305": Code("no tokenizer", "A random model has no checkpoint to take a tokenizer from; name one."),
    "E0306": Code("impossible shape", "Dimensions of the model contradict each other."),
    "E0307": Code("no such trajectories", "A stage uses trajectories of a domain that has none of this name."),
    "E0308": Code("domain cannot be acted in", "Rollouts and evaluations need the domain's `world`, `prompts` and `limits`."),
    "E0309": Code("row too short", "A packed row must hold the longest episode of its domains."),
    "E0310": Code("row too long", "A packed row is longer than the longest sequence that the model may see."),
    "E0311": Code("unknown world", "The world is neither built in nor an installed entry point of the group `polymath.worlds`."),
    "E0312": Code("data not found", "A file that the spec names does not exist or cannot be read."),
    "E0313": Code("no data", "A file that the spec names is empty."),
    "E0314": Code("invalid row", "A row of a JSONL file is not what its format promises; the message names file and row."),
    "E0315": Code("too few tasks", "An evaluation wants more distinct tasks than the domain sets aside."),
    "E0316": Code("more updates than prompts", "A GRPO batch cannot be split into more updates than it has groups."),
    "E0317": Code("pickled weights", "Weights are read from safetensors files only; the folder holds none."),
    "E0318": Code(
        "nothing to learn from", "The rewards of a group are always equal, so every advantage is zero and nothing moves."
    ),
    "E0319": Code(
        "support larger than the vocabulary", "The support is the teacher's `top_k` most likely tokens; there are not as many."
    ),
    "E0320": Code(
        "filter that filters nothing or all", "No row has the `reward` that `minimum_reward` wants, or no reward reaches it."
    ),
    "E0321": Code(
        "most of the data is cut off",
        "More than half of the locked rows are longer than the limit, so training or rollouts would mostly see beginnings.",
    ),
    "E0322": Code(
        "secret in the spec",
        "A URL holds a user and password. A spec is copied into plans, logs and reports; credentials belong into the environment.",
    ),
    "E0323": Code(
        "both distilled and merged", "The student inherits from its teachers by distillation or by merging their weights."
    ),
    "E0324": Code(
        "advantage on a support",
        "An advantage that is known for the teacher's top-k only is biased. The log-ratio of every other token is missing, and a "
        "missing advantage counts as zero: wherever student and teacher differ, the expected step then raises all tokens off the "
        "support. The exact estimator differentiates through the support and has no gradient there.",
    ),
    "E0325": Code(
        "samples of another distribution",
        "A sampled estimator is a mean over what was written, so whoever wrote it must be the distribution that the divergence is "
        "a mean under: reverse KL's is the student's at temperature 1, forward KL's the teacher's; Jensen-Shannon's is neither.",
    ),
    "E0326": Code(
        "unnormalised support",
        "Summed over a support without renormalising, reverse KL is no divergence: it is below zero, and least where the student "
        "keeps 1/e of the teacher's mass on the support and spends the rest on tokens that the sum does not see.",
    ),
    "E0330": Code("size and model disagree", "The family has no size of this name, or the checkpoint is of another one."),
    "E0331": Code("no backend", "FP8 and MXFP8 products are computed by Transformer Engine or by the reference; say by which."),
    "E0332": Code("no judge", "A reward asks a judge, and `engines` names none."),
    "E0333": Code(
        "no room for the forced answer",
        "`finalize` keeps room free in the context for its prompt and a whole turn; the episode has no more than that.",
    ),
    # Routing
    "E0401": Code("domain without a teacher", "Distillation needs exactly one teacher for every domain; this one has none."),
    "E0402": Code(
        "domain with two teachers", "Routing is exclusive: a domain's prompts are scored by one teacher, never by a mixture."
    ),
    "E0403": Code("teacher that nothing uses", "The teacher scores no domain, and no teacher that does starts from it."),
    "E0404": Code("unknown start", "A teacher starts from `base`, `student.sft` or another teacher."),
    "E0405": Code("teachers start from each other", "Following `from` leads back to the same teacher."),
    "E0406": Code("reserved name", "The name already stands for another model on the scoreboard."),
    "E0407": Code("unknown model", "The scoreboard's `models` names one that this spec does not make."),
    "E0408": Code(
        "teacher is its student", "The teacher is trained as the student is, so it would score the student with the student itself."
    ),
    "E0409": Code("unknown player", "What plays a role of self-play is `base`, `student.sft`, a teacher, or an endpoint."),
    "E0410": Code(
        "trained on what it plays",
        "A model can only play once it is trained. Where its training, or that of a model it starts from, reads what it is to "
        "play, neither could ever begin.",
    ),
    # Placement
    "E0501": Code("more devices than there are", "The placement wants more devices than the cluster has."),
    "E0502": Code("mesh does not fit", "`replicate` times `fsdp` must be the number of devices."),
    "E0503": Code(
        "expert degree does not divide the shards", "Expert parallelism borrows its ranks from the shards of one replica."
    ),
    "E0504": Code("experts cannot be divided", "Every rank of an expert group must hold the same number of experts."),
    "E0505": Code(
        "batch cannot be divided", "`batch_sequences` must be a multiple of the data-parallel degree times `micro_batch`."
    ),
    "E0506": Code("partly filled machines", "Several machines must all be used whole, or a single one in part."),
    "E0507": Code(
        "does not fit in memory",
        "By the estimate, the fullest rank of the mesh needs more memory than a device has.",
    ),
    "E0508": Code("roles need more devices", "A job's roles run at the same time; together they need more devices than there are."),
    "E0509": Code(
        "not possible together",
        "By the capability table, this combination does not work; the message says why, and who says so.",
    ),
    "E0530": Code("engine without devices", "An engine with processes of its own needs devices of its own."),
    "E0531": Code("copies do not fill the devices", "Every copy of an engine's model takes `tensor` of the role's devices."),
    # Sweeps
    "E0601": Code(
        "row that cannot be compared",
        "Rows are measured by what the first row's SFT model and teachers do at the same seed: it must have the seed and evaluate "
        "them, and the row must try the same held-out tasks.",
    ),
}


def summary(code: str) -> str:
    """The title of a code."""
    return CODES[code].title
