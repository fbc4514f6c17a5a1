#!/usr/bin/env bash
# Runs all stages on one machine: records, tokenizer, vocoder, tokens, language model, export, generated music, report.
#   bash launch/local.sh --music DIR [--output runs/mine] [--size tiny|small|base] [--tracks tracks.csv]
#                        [--validation-share X] [--prompt TEXT] [--dry-run] [--config.KEY=VALUE ...]
# DIR is a folder of audio files, or `synthetic` for the synthetic music of the package. A prompt needs captions from
# tracks.csv.
# The same command resumes an interrupted stage.
# --config.KEY=VALUE applies to all three trainings; --tokenizer.KEY=, --vocoder.KEY= or --language-model.KEY= applies to
# one of them. --dry-run only prints the commands.
set -euo pipefail

dry="" music="" output="runs/local" size="tiny" tracks=() share=() prompt="" seconds=10 offsets=4
tokenizer=() vocoder=() language_model=()
usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
while [ $# -gt 0 ]; do
  flag="${1%%=*}"
  case "$1" in
    --config.*=*) tokenizer+=("$1") vocoder+=("$1") language_model+=("$1"); shift; continue ;;
    --tokenizer.*=*) tokenizer+=("--config.${1#--tokenizer.}"); shift; continue ;;
    --vocoder.*=*) vocoder+=("--config.${1#--vocoder.}"); shift; continue ;;
    --language-model.*=*) language_model+=("--config.${1#--language-model.}"); shift; continue ;;
    --dry-run) dry=yes; shift; continue ;;
    --*=*) value="${1#*=}"; shift ;;
    --*) [ $# -ge 2 ] || usage; value="$2"; shift 2 ;;
    *) usage ;;
  esac
  case "$flag" in
    --music) music="$value" ;;
    --output) output="$value" ;;
    --size) size="$value" ;;
    --tracks) tracks=(--tracks "$value") ;;
    --validation-share) share=(--validation-share "$value") ;;
    --prompt) prompt="$value" ;;
    --seconds) seconds="$value" ;;
    --offsets) offsets="$value" ;;
    *) usage ;;
  esac
done
[ -n "$music" ] || usage
# A shell does not expand ~ in --output=~/x.
absolute() {
  case "$1" in /*|synthetic*) echo "$1" ;; \~|\~/*) echo "$HOME${1#\~}" ;; *) echo "$PWD/$1" ;; esac
}
music="$(absolute "$music")" output="$(absolute "$output")"
[ ${#tracks[@]} -eq 0 ] || tracks[1]="$(absolute "${tracks[1]}")"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
step() { echo; echo "== $*"; }
if [ -n "$dry" ]; then
  step "environment for: $(bash launch/accelerator.sh | grep . || echo cpu)"
else
  source launch/environment.sh accelerator
fi
run() { if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

step "1/6 records: $music"
run bandtok prepare "$music" --output "$output/data" ${tracks[@]+"${tracks[@]}"} ${share[@]+"${share[@]}"}
step "2/6 tokenizer: audio to a grid of codes"
run bandtok train --config="bandtok:$size" --workdir="$output/tokenizer" --config.data.sources="$output/data" \
  ${tokenizer[@]+"${tokenizer[@]}"}
step "3/6 vocoder: mel spectrograms to audio"
run bandtok train --config="vocos:$size" --workdir="$output/vocoder" --config.data.sources="$output/data" \
  ${vocoder[@]+"${vocoder[@]}"}
step "4/6 tokens of the whole corpus"
run bandtok tokenize --model="$output/tokenizer" --data="$output/data" --output="$output/tokens" --offsets="$offsets"
step "5/6 language model over the grid"
run bandtok train --config="language_model:$size" --workdir="$output/language_model" \
  --config.data.tokens="$output/tokens" --config.tokenizer="$output/tokenizer" --config.vocoder="$output/vocoder" \
  ${language_model[@]+"${language_model[@]}"}
step "6/6 export, generated music, report"
run bandtok export "$output/tokenizer" --vocoder="$output/vocoder" --language-model="$output/language_model" -o "$output/model"
run bandtok generate --model="$output/model" ${prompt:+--prompt "$prompt"} --seconds "$seconds" --seed 1 -o "$output/generated.wav"
run python -m bandtok_jax.evaluation.report.run_page --runs "$output" --data "$output/data" --output "$output/report.html" \
  ${prompt:+--prompt "$prompt"}
