"""Clean data: held-out tasks are found in training sets, secrets and personal data go, licences stay, cards say what is there."""

import json
from pathlib import Path

import pytest
import yaml
from polymath.runtime.cli import main
from polymath.runtime.hygiene.contamination import HeldOut, SourceContamination, report
from polymath.runtime.hygiene.scrub import RULES, Scrubber, iban, luhn
from polymath.runtime.knowledge.conversions import from_openai
from polymath.runtime.knowledge.records import read_records, record_from_json

QUESTION = "Natalia sold clips to 48 of her friends in April and then half as many in May; how many clips did she sell altogether?"

# Invented, all of them: keys of the right form that open nothing.
SECRETS = {
    "email": ("write to ada.l+x@mail.example.org now", "ada.l+x@mail.example.org"),
    "card_number": ("card 4539 1488 0343 6467 please", "4539 1488 0343 6467"),
    "iban": ("account DE89 3704 0044 0532 0130 00.", "DE89 3704 0044 0532 0130 00"),
    "social_security_number": ("ssn 219-09-9999", "219-09-9999"),
    "phone": ("call +49 30 1234 5678 or", "+49 30 1234 5678"),
    "ip_address": ("host 192.168.17.4 is up", "192.168.17.4"),
    "api_key": ("export KEY=" + "AKIA" + "Q" * 16, "AKIA" + "Q" * 16),
    "token": (
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlLWhlcmU",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlLWhlcmU",
    ),
    "bearer": ("Authorization: Bearer abcdefghijklmnop1234", "abcdefghijklmnop1234"),
    "password": ("password: hunter2hunter2", "hunter2hunter2"),
    "url_password": ("https://me:letmein@example.org/x", "me:letmein"),
    "private_key": (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    ),
}
INNOCENT = (
    "order 1234567890123456 of 48 clips costs 3.14159265358979 in 2024-05-15",
    "version 1.2.3, page 12-34, 127.0.0.1 is this machine, x@y is no address, a+b=c",
    "5,000,000 people; ISBN 978-3-16-148410-0; 12:30:45; flight HAT271; reservation 4WQ150",
    "the secret: none. A token of thanks; the password is not written here",
)


def chat(*texts: str, **more):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)], **more}


def test_every_rule_has_a_case_and_replaces_what_it_is_for():
    assert set(SECRETS) == {rule.name for rule in RULES}
    for name, (text, secret) in SECRETS.items():
        scrubber = Scrubber()
        found = scrubber.text(text)
        assert secret not in found and f"[{name}_1]" in found, (name, found)
        assert scrubber.counts == {name: 1}


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_like_one_stays(text):
    scrubber = Scrubber()
    assert scrubber.text(text) == text and not scrubber.counts


def test_check_digits_decide():
    assert luhn("4539148803436467") and not luhn("4539148803436468") and not luhn("0000000000000000")
    assert iban("DE89 3704 0044 0532 0130 00") and not iban("DE88 3704 0044 0532 0130 00")


def test_one_value_keeps_one_name_in_an_episode_and_arguments_stay_json():
    call = {"type": "function", "function": {"name": "mail", "arguments": json.dumps({"to": "a@b.org", "note": 'say "a@b.org"'})}}
    row = chat("mail a@b.org and c@d.org")
    row["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sent to a@b.org"},
    ]
    scrubber = Scrubber()
    record = scrubber.scrub(from_openai(row))
    texts = [message["content"] for message in record.messages]
    assert texts[0] == "mail [email_1] and [email_2]" and texts[2] == "sent to [email_1]"
    assert json.loads(record.messages[1]["tool_calls"][0]["function"]["arguments"]) == {
        "to": "[email_1]",
        "note": 'say "[email_1]"',
    }
    assert record_from_json(record.as_json()).id == record.id and scrubber.counts["email"] >= 5
    clean = from_openai(chat("hello", "hi"))
    assert Scrubber().scrub(clean) is clean


def test_a_heldout_question_is_found_word_for_word_nearly_and_inside_a_longer_text():
    heldout = HeldOut()
    heldout.add("sums:0", QUESTION)
    heldout.add("sums:1", "What is 2 + 2?")
    kinds = {
        "exact": QUESTION.upper() + "!!",
        "near": QUESTION.replace("Natalia", "Maria"),
        "quoted": "Notes. " * 300 + QUESTION.replace("altogether", "in all") + " Remember to show your work. " * 50,
    }
    for kind, text in kinds.items():
        assert heldout.find([{"role": "user", "content": text}]) == {"sums:0": kind}, kind
    assert heldout.find([{"role": "user", "content": "Natalia bought 48 clips in May. How many did she sell?"}]) == {}
    assert heldout.find([{"role": "user", "content": "what is 2 + 2"}, {"role": "assistant", "content": None}]) == {
        "sums:1": "exact"
    }


def test_the_report_counts_rows_and_tasks_and_shows_examples():
    heldout = HeldOut()
    heldout.add("sums:0", QUESTION)
    source = SourceContamination(source="train.jsonl")
    for row in range(10):
        source.look_at(row, chat(QUESTION if row % 5 == 0 else f"question {row}", "answer")["messages"], heldout)
    found = report(heldout, [source])
    assert found["clean"] is False and found["heldout_tasks"] == {"sums": 1}
    (one,) = found["sources"]
    assert (one["rows"], one["contaminated_rows"], one["heldout_tasks"]["exact"]) == (10, 2, 1)
    assert one["examples"] == [{"row": 0, "task": "sums:0", "kind": "exact", "question": QUESTION}]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    rows = [
        {"question": f"How many apples are {n} apples and {n + 1} more apples?", "answer": f"#### {2 * n + 1}"} for n in range(40)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = {
        "world": "gsm8k",
        "settings": {"data": "sums.jsonl"},
        "trajectories": [{"path": "train.jsonl"}],
        "prompts": {"train": 5, "heldout": 5},
        "limits": {"turns": 1, "response_tokens": 64, "context_tokens": 512},
    }
    shape = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "experts": 2, "experts_per_token": 1}
    data = {
        **{"polymath": 1, "name": "sums", "seed": 1, "domains": {"sums": domain}},
        "model": {
            **{"family": "qwen3_moe", "checkpoint": "random", "tokenizer": "builtin:bytes"},
            "shape": {**shape, "expert_hidden": 16, "context_tokens": 512},
        },
        "student": {"sft": {"epochs": 1, "batch_sequences": 1, "sequence_tokens": 512, "learning_rate": 1e-3}},
        "cluster": {"accelerator": "cpu", "nodes": 1, "per_node": 1},
        "placement": {"sft": {"trainer": {"devices": 1}}},
    }
    path = tmp_path / "sums.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_check_exits_3_where_training_data_holds_heldout_tasks_and_0_where_it_does_not(spec: Path, capsys):
    train = spec.with_name("train.jsonl")
    train.write_text(json.dumps(chat("What is the capital of France?", "Paris")) + "\n")
    assert main(["trajectories", "check", str(spec), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clean"] is True
    questions = [json.loads(line)["question"] for line in spec.with_name("sums.jsonl").read_text().splitlines()]
    train.write_text("".join(json.dumps(chat(question, "I do not know")) + "\n" for question in questions))
    assert main(["trajectories", "check", str(spec), "-o", str(spec.with_name("report.json"))]) == 3
    found = json.loads(spec.with_name("report.json").read_text())
    assert found["sources"][0]["heldout_tasks"]["exact"] == 5 and "rows hold held-out tasks" in capsys.readouterr().out


def test_clean_scrubs_leaves_out_near_duplicates_and_states_licences(tmp_path: Path, capsys):
    long = " ".join(f"word{n}" for n in range(80))
    rows = [
        chat(f"{long} a@b.org", "noted"),
        chat(f"{long} c@d.org", "noted"),  # differs by its address alone
        chat("something else entirely", "yes", licence_of_row="kept"),
    ]
    source = tmp_path / "raw.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["trajectories", "clean", str(source), "--licence", "MIT"]) == 0
    records = list(read_records(str(tmp_path / "raw.clean.jsonl")))
    assert len(records) == 2 and all(record.provenance["licence"] == "MIT" for record in records)
    assert "a@b.org" not in (tmp_path / "raw.clean.jsonl").read_text()
    assert "kept 2 of 3 records, left out 1 near-duplicates; replaced" in capsys.readouterr().out
    assert (
        main(
            ["trajectories", "clean", str(tmp_path / "raw.clean.jsonl"), "--licence", "Apache-2.0", "-o", str(tmp_path / "2.jsonl")]
        )
        == 0
    )
    again = list(read_records(str(tmp_path / "2.jsonl")))
    assert [one.provenance["licence"] for one in again] == ["MIT", "MIT"]  # carried along, never replaced
    assert main(["trajectories", "clean", str(source), "-o", str(source)]) == 64


def test_a_card_says_what_is_there_and_what_is_not_known(tmp_path: Path):
    source = tmp_path / "set.jsonl"
    source.write_text(
        json.dumps(chat("mail a@b.org | <b>", "ok", reward=1.0)) + "\n" + json.dumps(chat("x", "y", reward=0.0)) + "\n"
    )
    assert main(["trajectories", "card", str(source)]) == 0
    card = (tmp_path / "set.card.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "other" and front["size_categories"] == ["n<1K"]
    assert "1 of 2 with a verdict solved" in card and "still find: email" in card and "not stated | 2" in card
    assert "Not compared with any held-out tasks." in card


def test_a_bad_row_is_named(tmp_path: Path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    for action in ("clean", "card", "view"):
        assert main(["trajectories", action, str(tmp_path / "bad.jsonl"), "-o", str(tmp_path / "out")]) == 3
        assert "bad.jsonl, row 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".staging*"))


def test_a_sum_is_another_question_than_a_product() -> None:
    heldout = HeldOut(threshold=None)
    heldout.add("sums:0", "What is protons neon + 3?")
    asked = ("what is PROTONS neon +  3", "What is protons neon * 3?", "What is protons neon - 3?", "What is protons neon 3?")
    assert [bool(heldout.find([{"role": "user", "content": text}])) for text in asked] == [True, False, False, False]
