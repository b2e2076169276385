#!/usr/bin/env bash
# Runs the tests against another torch, and another diffusers, in a virtual environment of their own.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/run_on.sh [-h] [--diffusers VERSION] [--with REQUIREMENT]... TORCH_VERSION [PYTEST ARGUMENT...]

Makes a virtual environment, installs torch TORCH_VERSION from PyPI and this project with its test extra, prints the
versions, and runs pytest -n 2 on tests/passes, tests/backend, tests/runtime and tests/kernels. If an argument begins
with tests/, the folders are those of the arguments alone. The exit status is that of pytest; 2 means a wrong call.

  -h, --help            prints this text
  --diffusers VERSION   installs this diffusers (or: DIFFUSERS=VERSION), and a transformers that suits it
  --with REQUIREMENT    one more requirement for pip, any number of times, where its own choice does not work

  PYTHON=python3        the interpreter that makes the environment
  VENV=folder           the environment's folder, a new one in TMPDIR if unset. An environment that is there already is
                        used again: pip changes in it what differs
  KEEP=1                keeps the environment; else the script removes it, if it made it

The other packages have the versions of constraints.txt, except those that depend on the version of torch (triton,
setuptools, torchao) or of diffusers (torchao, transformers and its companions). The torch that constraints.txt names
is installed with all of constraints.txt; others are CUDA builds of several GB, and run on the CPU all the same.

  tests/run_on.sh 2.11.0
  KEEP=1 VENV=/tmp/t211 tests/run_on.sh 2.11.0 -x -k reuse
  tests/run_on.sh --diffusers 0.36.0 --with 'torchao<0.16' 2.13.0 tests/coverage/test_models.py -k 'Flux or Wan'
TEXT
}

fail() {
    echo "tests/run_on.sh: $1" >&2
    exit "${2:-1}"
}

diffusers=${DIFFUSERS:-}
with=()
while [[ ${1-} == -* ]]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --diffusers=?*) diffusers=${1#*=} && shift ;;
        --diffusers) [[ -n ${2-} ]] || fail "--diffusers needs a version" 2; diffusers=$2 && shift 2 ;;
        --with=?*) with+=("${1#*=}") && shift ;;
        --with) [[ -n ${2-} ]] || fail "--with needs a requirement" 2; with+=("$2") && shift 2 ;;
        *) fail "unknown option $1 before TORCH_VERSION; -h prints the options" 2 ;;
    esac
done
[[ $# -ge 1 ]] || { usage >&2 && exit 2; }
torch=$1
shift
for version in "$torch" ${diffusers:+"$diffusers"}; do
    [[ $version =~ ^[0-9][0-9A-Za-z.+]*$ ]] || fail "'$version' is no version" 2
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
venv=${VENV:-$work/venv}
[[ -n ${VENV:-} || -z ${KEEP:-} ]] || venv=$(mktemp -d -t "torch-$torch-XXXXXX")
[[ $venv == /* ]] || venv=$PWD/$venv
cd "$root"
made="" # by this run: an environment that was there before is never removed
clean_up() {
    rm -rf "$work"
    if [[ -n ${KEEP:-} ]]; then
        [[ ! -e $venv/pyvenv.cfg ]] || echo "==> kept: $venv"
    elif [[ -n $made ]]; then
        rm -rf "$venv"
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [[ ! -e $venv/pyvenv.cfg ]]; then
    [[ -z $(ls -A "$venv" 2>/dev/null) ]] || fail "VENV=$venv is neither empty nor a virtual environment" 2
    made=1
    "${PYTHON:-python3}" -m venv "$venv"
fi
export PATH="$venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
unset PYTHONHOME
for variable in $(compgen -e DIT_CACHE_ || true); do unset "$variable"; done

check() { # check PACKAGE VERSION: ends the script unless pip can find that version
    local versions
    versions=$(python -m pip index versions "$1" 2>"$work/index") || fail "pip finds no $1: $(tail -n 1 "$work/index")"
    versions=$(sed -n 's/^Available versions: //p' <<<"$versions")
    [[ ", $versions," == *", $2,"* ]] || fail "there is no $1 $2 for $(python --version); there are: $versions" 2
}

# In the place of -c, which pip would add to the limits that a configuration file of this machine may set.
export PIP_CONSTRAINT="$work/constraints.txt"
free=""
grep -qx "torch==$torch" constraints.txt || free="torch|torchao|triton|setuptools"
[[ -z $diffusers ]] || free+="${free:+|}accelerate|diffusers|hf-xet|huggingface_hub|kernels|peft|safetensors|tokenizers"
[[ -z $diffusers ]] || free+="|torchao|transformers"
for requirement in ${with[@]+"${with[@]}"}; do free+="${free:+|}${requirement%%[^A-Za-z0-9._-]*}"; done
grep -vixE "(${free:-none})==.*" constraints.txt >"$PIP_CONSTRAINT"

python -m pip install -qq --upgrade pip
check torch "$torch"
[[ -z $diffusers ]] || check diffusers "$diffusers"
echo "==> installing torch $torch${diffusers:+, diffusers $diffusers} in $venv"
python -m pip install -qq "torch==$torch" ${diffusers:+"diffusers==$diffusers"} \
    ${with[@]+"${with[@]}"} -e ".[test]"

python - <<'PYTHON'
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

print(f"==> python {python_version()}", end="")
for name in ("torch", "triton", "torchao", "diffusers", "transformers", "numpy", "pytest"):
    try:
        print(f", {name} {version(name)}", end="")
    except PackageNotFoundError:
        print(f", no {name}", end="")
print(flush=True)
PYTHON

folders=(tests/passes tests/backend tests/runtime tests/kernels)
for argument in "$@"; do
    [[ $argument != tests && $argument != tests/* ]] || folders=()
done
export TORCHINDUCTOR_CACHE_DIR="$work/inductor" TRITON_CACHE_DIR="$work/triton" # nothing that another torch compiled
echo "==> python -m pytest -n 2 ${folders[*]-} $*"
status=0
python -m pytest -n 2 ${folders[@]+"${folders[@]}"} "$@" || status=$?
exit "$status"
