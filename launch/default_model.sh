#!/usr/bin/env bash
# Trains the model that is installed with the package, on music whose licence allows to pass the weights on: about an
# hour on two CPU cores. The same command resumes an interrupted training.
#   bash launch/default_model.sh --music DIR --tracks tracks.csv [--output runs/default] [--dry-run]
# Only the tracks with the licence CC0-1.0 in tracks.csv are used. The last command writes bandtok_jax/pretrained/default.
set -euo pipefail
output="runs/default" flags=() dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    --output) output="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    --output=*) output="${1#*=}"; shift ;;
    --dry-run) dry="$1"; flags+=("$1"); shift ;;
    *) flags+=("$1"); shift ;;
  esac
done
[ -n "$output" ] || { echo "default_model.sh: --output: its value is missing; --help lists the arguments" >&2; exit 2; }

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
codes=8192 # 2.24 kbit/s
bash "$root/launch/local.sh" --output "$output" --licence CC0-1.0 --half --seconds 20 --offsets 8 \
  --config.optimizer.final_lr_fraction=0.02 --config.checkpoint_every=500 \
  --tokenizer.total_steps=10000 --tokenizer.model.codebook_size=$codes --tokenizer.evaluate_every=1000 \
  --vocoder.total_steps=3000 --vocoder.loss.adversarial_start=-1 --vocoder.evaluate_every=500 \
  --language-model.total_steps=1000 --language-model.batch_size=8 --language-model.data.columns=64 \
  --language-model.model.codebook_size=$codes --language-model.model.layout=depth --language-model.model.dim=160 \
  --language-model.model.feed_forward_dim=384 --language-model.model.num_layers=3 --language-model.model.row_dim=64 \
  --language-model.model.text_dim=64 --language-model.model.text_ngrams=1024 \
  --language-model.loss.infill_fraction=0.25 --language-model.evaluate_every=250 \
  ${flags[@]+"${flags[@]}"}
[ -n "$dry" ] || source "$root/launch/environment.sh" train,eval,accelerator
finish=(bandtok export "$output/model" --half --licence cc0-1.0 -o "$root/bandtok_jax/pretrained/default")
if [ -n "$dry" ]; then printf '%q ' "${finish[@]}"; echo; else "${finish[@]}"; fi
