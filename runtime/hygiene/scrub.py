"""Secrets and personal data, found by rule and replaced by what they were: `[email]`, `[card_number]`, ...

What it does: looks at every text of a record (contents, reasoning, arguments of calls, answers, task) and counts what each rule
replaced. One value gets one number within a record, so that a conversation stays readable: `[email_1]` is not `[email_2]`. What it
does not do: find names, addresses or anything that only understanding finds. Numbers that carry a check digit are replaced only
where it is right, so that an order number stays what it is.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..knowledge.records import TrajectoryRecord

Check = Callable[[str], bool]


def luhn(text: str) -> bool:
    """Whether a card number's check digit is right."""
    digits = [int(one) for one in text if one.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) if place % 2 else digit for place, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether an account number's check digits are right."""
    plain = re.sub(r"\s", "", text).upper()
    return int("".join(str(int(one, 36)) for one in plain[4:] + plain[:4])) % 97 == 1


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of thing to replace. Where the pattern has a group `value`, that alone is replaced."""

    name: str
    pattern: re.Pattern[str]
    check: Check = lambda text: True


def _rule(name: str, pattern: str, check: Check = lambda text: True) -> Rule:
    return Rule(name, re.compile(pattern), check)


RULES = (  # in this order: a key inside an address goes with the address
    _rule("private_key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{1,10000}?-----END [A-Z ]*PRIVATE KEY-----"),
    _rule("url_password", r"(?<=://)(?P<value>[^/\s:@]{1,100}:[^/\s@]{1,100})(?=@)"),
    _rule("token", r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"),
    _rule("api_key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    _rule("api_key", r"\b(?:sk|pk|rk)[-_](?:[a-z]{2,10}[-_])*[A-Za-z0-9_-]{20,}\b"),
    _rule("api_key", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,})\b"),
    _rule("api_key", r"\bxox[abprs]-[\w-]{10,}\b|\bAIza[\w-]{35}\b"),
    _rule("bearer", r"(?i)\bbearer\s+(?P<value>[\w.~+/-]{16,}=*)"),
    _rule("password", r"(?i)\b(?:password|passwd|secret|api[_-]?key|access[_-]?token)\b\"?\s*[:=]\s*\"?(?P<value>[^\s\"',;]{6,})"),
    _rule("email", r"\b[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b"),
    _rule("iban", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", iban),
    _rule("card_number", r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]|\.\d)", luhn),
    _rule("social_security_number", r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
    _rule("phone", r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,4}(?!\w)"),
    _rule("phone", r"(?<!\w)(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?![\w-])"),
    _rule(
        "ip_address",
        r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])",
        lambda ip: ip != "127.0.0.1",
    ),
)


@dataclass(slots=True)
class Scrubber:
    """Replaces in one record; `counts` are of all records together."""

    counts: Counter[str] = field(default_factory=Counter)
    _named: dict[tuple[str, str], str] = field(default_factory=dict)

    def scrub(self, record: TrajectoryRecord) -> TrajectoryRecord:
        """The record without what the rules find; itself where they find nothing."""
        self._named = {}
        before = self.counts.total()
        task = replace(
            record.task,
            instruction=self.text(record.task.instruction),
            key=self.text(record.task.key),
            target=record.task.target and self.text(record.task.target),
            payload=self.value(dict(record.task.payload)),
        )
        scrubbed = replace(
            record,
            task=task,
            messages=tuple(self._message(one) for one in record.messages),
            answer=record.answer and self.text(record.answer),
            provenance=self.value(dict(record.provenance)),
        )
        return scrubbed if self.counts.total() > before else record

    def text(self, text: str) -> str:
        """A text with every finding replaced and counted."""
        for rule in RULES:
            text = rule.pattern.sub(lambda match, rule=rule: self._replacement(rule, match), text)
        return text

    def value(self, value: Any) -> Any:
        """JSON with every text scrubbed; keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(one) for key, one in value.items()}
        return [self.value(one) for one in value] if isinstance(value, (list, tuple)) else value

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        found = {key: one if key in ("role", "tool_calls", "tool_call_id") else self.value(one) for key, one in message.items()}
        if message.get("tool_calls"):
            found["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return found

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments are JSON text: their values are scrubbed, so that it stays JSON."""
        function = call["function"]
        try:
            arguments = json.dumps(self.value(json.loads(function["arguments"])), ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            arguments = self.value(function["arguments"])
        return {**call, "function": {**function, "arguments": arguments}}

    def _replacement(self, rule: Rule, match: re.Match[str]) -> str:
        whole = match[0]
        value = match["value"] if "value" in rule.pattern.groupindex else whole
        if not rule.check(value):
            return whole
        self.counts[rule.name] += 1
        same_kind = sum(kind == rule.name for kind, _ in self._named)
        name = self._named.setdefault((rule.name, value), f"[{rule.name}_{same_kind + 1}]")
        return whole.replace(value, name)
