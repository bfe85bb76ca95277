#!/usr/bin/env bash
# What can be checked by reading: format, shell scripts, and what no commit may hold.
#
#   scripts/lint.sh [--fix]      --fix: format instead of complaining
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "lint: $1" >&2
  exit 1
}

format=(--dry-run -Werror)
[[ ${1:-} != --fix ]] || format=(-i)

# The header is laid out in columns by hand; generated files look as their generator likes.
git ls-files -z '*.c' '*.h' '*.cpp' '*.hpp' '*.cu' '*.cuh' ':!include/lycoris.h' ':!tests/bindings/layout_probe.c' |
  xargs --null clang-format "${format[@]}"

git grep -lIzE '^#!.*\b(ba)?sh$' | xargs --null shellcheck scripts/stages.sh

# Folders of one machine.
if git grep -nIE '(^|[^[:alnum:].$}{])/(work|root|home|mnt|Users)/'; then
  fail "paths of one machine"
fi

# Links go to pages about the subject; never to a registry or mirror that one machine happens to use.
pages='arxiv\.org|github\.com|doi\.org|www\.apache\.org|keepachangelog\.com|semver\.org|spdx\.org|developer\.nvidia\.com'
pages+='|docs\.nvidia\.com|huggingface\.co|opensource\.org'
if git grep -nIoE '[a-z]+://[^[:space:])>"'"'"']+' | grep -vE ":[a-z]+://($pages)(/|$)"; then
  fail "links to unexpected places; scripts/lint.sh lists the expected ones"
fi

# Includes go one way (CONTRIBUTING.md has the picture). LAYER MAY_INCLUDE...
while read -r layer allowed; do
  if git grep -nE '^#include "(base|ops|algo|io|cpu|core|capi)/' "src/$layer" | grep -vE "#include \"($allowed)/"; then
    fail "src/$layer includes what is above or beside it"
  fi
done <<'END'
base base
ops base|ops
algo base|ops|algo
io base|io
cpu base|ops|cpu
core base|ops|algo|io|cpu|core
END
