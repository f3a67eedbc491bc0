"""completion: what a shell completes of our command line."""

import argparse
from collections.abc import Mapping, Sequence

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json

SHELLS = ("bash", "zsh", "fish")
INSTALL = {
    "bash": 'eval "$(polymath completion bash)"   # in ~/.bashrc',
    "zsh": "polymath completion zsh > ~/.zfunc/_polymath   # where fpath has ~/.zfunc, before compinit",
    "fish": "polymath completion fish > ~/.config/fish/completions/polymath.fish",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(options: argparse.Namespace) -> int:
    """Print what makes a shell complete verbs, flags, fields of the language and codes."""
    from ...specs.codes import CODES
    from ...specs.tree import all_nodes

    flags = flags_by_verb()
    fields = sorted({node.path.replace("[]", "") for node in all_nodes() if "<" not in node.path})
    if options.json:
        print_json({"ok": True, "verbs": flags, "fields": fields, "codes": list(CODES)})
        return ExitCode.OK
    script = {"bash": bash, "zsh": zsh, "fish": fish}[options.shell]
    print(f"# {INSTALL[options.shell]}\n{script(flags, fields, list(CODES))}", end="")
    return ExitCode.OK


def flags_by_verb() -> dict[str, list[str]]:
    """Every flag of every verb, in the order of `--help`."""
    from ..cli import make_parser

    return {name: list(dict.fromkeys(_flags(verb))) for name, verb in _below(make_parser()).items()}


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    own = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    return own + [flag for below in _below(parser).values() for flag in _flags(below)]


def _below(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    return next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), {})


def bash(flags: Mapping[str, Sequence[str]], fields: Sequence[str], codes: Sequence[str]) -> str:
    """For bash: words by position, files where nothing else fits."""
    cases = "\n".join(f"    {verb}) flags='{' '.join(words)}' ;;" for verb, words in flags.items())
    return f"""_polymath() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" flags=''
  local fields='{" ".join(fields)}'
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(flags)}' -- "$cur"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$prev" in
    --set) COMPREPLY=($(compgen -S = -W "$fields" -- "$cur")); compopt -o nospace 2>/dev/null; return ;;
    --show) COMPREPLY=($(compgen -W "$fields" -- "$cur")); return ;;
    --format) COMPREPLY=($(compgen -W 'mermaid dot text' -- "$cur")); return ;;
    explain) COMPREPLY=($(compgen -W "$fields {" ".join(codes)}" -- "$cur")); return ;;
    completion) COMPREPLY=($(compgen -W '{" ".join(SHELLS)}' -- "$cur")); return ;;
  esac
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
    *) COMPREPLY=($(compgen -f -- "$cur")) ;;
  esac
}}
complete -o filenames -F _polymath polymath
"""


def zsh(flags: Mapping[str, Sequence[str]], fields: Sequence[str], codes: Sequence[str]) -> str:
    """For zsh."""
    cases = "\n".join(f"    {verb}) flags=({' '.join(words)}) ;;" for verb, words in flags.items())
    return f"""#compdef polymath
_polymath() {{
  local -a flags fields
  fields=({" ".join(fields)})
  if (( CURRENT == 2 )); then
    compadd -- {" ".join(flags)}
    return
  fi
  case "$words[2]" in
{cases}
  esac
  case "$words[CURRENT-1]" in
    --set) compadd -S = -- $fields; return ;;
    --show) compadd -- $fields; return ;;
    --format) compadd -- mermaid dot text; return ;;
    explain) compadd -- $fields {" ".join(codes)}; return ;;
    completion) compadd -- {" ".join(SHELLS)}; return ;;
  esac
  if [[ "$words[CURRENT]" == -* ]]; then
    compadd -- $flags
  else
    _files
  fi
}}
_polymath "$@"
"""


def fish(flags: Mapping[str, Sequence[str]], fields: Sequence[str], codes: Sequence[str]) -> str:
    """For fish."""
    lines = [f"complete -c polymath -n __fish_use_subcommand -f -a '{' '.join(flags)}'"]
    for verb, words in flags.items():
        seen = f"-n '__fish_seen_subcommand_from {verb}'"
        for word in words:
            wants = {"--set": f" -x -a '{' '.join(f'{one}=' for one in fields)}'", "--show": f" -x -a '{' '.join(fields)}'"}
            lines.append(f"complete -c polymath {seen} -l {word.removeprefix('--')}{wants.get(word, '')}")
    lines.append(f"complete -c polymath -n '__fish_seen_subcommand_from explain' -f -a '{' '.join([*fields, *codes])}'")
    lines.append(f"complete -c polymath -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'")
    return "\n".join(lines) + "\n"


VERB = Verb(
    name="completion", help="print what makes a shell complete verbs, flags and fields", add_arguments=add_arguments, run=run
)
