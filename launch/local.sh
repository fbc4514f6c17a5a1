#!/usr/bin/env bash
# Runs all stages on one machine: records, tokenizer, vocoder, tokens, language model, export, generated music, report.
#   bash launch/local.sh --music DIR [--system bandtok|mucodec] [--output runs/mine] [--size tiny|small|base] [--stereo]
#                        [--tracks tracks.csv] [--licence NAME ...] [--validation-share X] [--prompt TEXT] [--half]
#                        [--dry-run] [--config.KEY=VALUE ...]
# DIR is a folder of audio files, or `synthetic` for the synthetic music of the package. A prompt needs captions from
# tracks.csv. --licence leaves out tracks with other licences. --half rounds the weights of the model to float16.
# --stereo adds 12 rows of the side to the 16 of bandtok's grid. The system mucodec is always stereo, and trains an
# encoder and an autoencoder before its tokenizer.
# The same command resumes an interrupted stage.
# --config.KEY=VALUE applies to all trainings; --encoder.KEY=, --autoencoder.KEY=, --vocoder.KEY=, --tokenizer.KEY= or
# --language-model.KEY= applies to one of them. --dry-run only prints the commands.
set -euo pipefail

dry="" music="" system="bandtok" output="runs/local" size="tiny" tracks=() licences=() share=() prompt=""
half="" stereo="" of_mucodec="" seconds=10 offsets=4
encoder=() autoencoder=() tokenizer=() vocoder=() language_model=()
wrong() { echo "local.sh: $*; --help lists the arguments" >&2; exit 2; }
while [ $# -gt 0 ]; do
  flag="${1%%=*}"
  case "$1" in
    -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    --config.*=*)
      encoder+=("$1") autoencoder+=("$1") tokenizer+=("$1") vocoder+=("$1") language_model+=("$1"); shift; continue ;;
    --encoder.*=*) encoder+=("--config.${1#--encoder.}") of_mucodec="$1"; shift; continue ;;
    --autoencoder.*=*) autoencoder+=("--config.${1#--autoencoder.}") of_mucodec="$1"; shift; continue ;;
    --tokenizer.*=*) tokenizer+=("--config.${1#--tokenizer.}"); shift; continue ;;
    --vocoder.*=*) vocoder+=("--config.${1#--vocoder.}"); shift; continue ;;
    --language-model.*=*) language_model+=("--config.${1#--language-model.}"); shift; continue ;;
    --dry-run) dry=yes; shift; continue ;;
    --half) half=yes; shift; continue ;;
    --stereo) stereo=yes; shift; continue ;;
    --*=*) value="${1#*=}"; shift ;;
    --*) value="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
    *) wrong "$1: unknown argument" ;;
  esac
  case "$flag" in
    --music) music="$value" ;;
    --system) system="$value" ;;
    --output) output="$value" ;;
    --size) size="$value" ;;
    --tracks) tracks=(--tracks "$value") ;;
    --licence) licences+=(--licence "$value") ;;
    --validation-share) share=(--validation-share "$value") ;;
    --prompt) prompt="$value" ;;
    --seconds) seconds="$value" ;;
    --offsets) offsets="$value" ;;
    *) wrong "$flag: unknown argument" ;;
  esac
  [ -n "$value" ] || wrong "$flag: its value is missing"
done
[ -n "$music" ] || wrong "--music: give a folder of audio files, or synthetic"
case "$system" in bandtok) stages=6 ;; mucodec) stages=8 ;; *) wrong "--system $system: give bandtok or mucodec" ;; esac
[ "$system" = mucodec ] || [ -z "$of_mucodec" ] || wrong "$of_mucodec: $system has no such stage, only mucodec"
case "$size" in tiny|small|base) ;; *) wrong "--size $size: give tiny, small or base" ;; esac
for number in "$seconds" "$offsets" "${share[1]:-0}"; do
  [[ "$number" =~ ^[0-9]*\.?[0-9]+$ ]] || wrong "$number: give a number"
done
# A shell does not expand ~ in --output=~/x.
absolute() {
  case "$1" in /*) echo "$1" ;; \~|\~/*) echo "$HOME${1#\~}" ;; *) echo "$PWD/$1" ;; esac
}
output="$(absolute "$output")"
case "$music" in
  synthetic|synthetic:*) ;;
  *) music="$(absolute "$music")"; [ -d "$music" ] || wrong "--music $music: no such folder" ;;
esac
if [ ${#tracks[@]} -gt 0 ]; then
  tracks[1]="$(absolute "${tracks[1]}")"
  [ -f "${tracks[1]}" ] || wrong "--tracks ${tracks[1]}: no such file"
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
step() { echo; echo "== $*"; }
number=0
stage() { number=$((number + 1)); step "$number/$stages $*"; }
if [ -n "$dry" ]; then
  step "environment for: $(bash launch/accelerator.sh | grep . || echo cpu)"
else
  source launch/environment.sh train,eval,accelerator
fi
run() { if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

train() { # FOLDER CONFIG [FLAG ...]
  local folder="$1" config="$2"
  shift 2
  run bandtok train --config="$config" --workdir="$output/$folder" "$@"
}

round_tokenizer() { # the next stages are trained on the codes of the rounded weights
  tokenizer_run="$output/tokenizer"
  [ -n "$half" ] || return 0
  tokenizer_run="$output/tokenizer_half"
  run bandtok export "$output/tokenizer" --half -o "$tokenizer_run"
}

data="--config.data.sources=$output/data"
if [ "$system" = bandtok ]; then
  tokenizer_config="bandtok:$size" vocoder_config="vocos:$size" earlier=()
  if [ -n "$stereo" ]; then # that of bandtok:tiny_stereo
    tokenizer=(--config.model.side_mels=96 --config.data.channels=2 ${tokenizer[@]+"${tokenizer[@]}"})
    language_model=(--config.model.rows=28 ${language_model[@]+"${language_model[@]}"})
  fi
else
  tokenizer_config="mucodec:$size"
  if [ "$size" = tiny ]; then vocoder_config="vocos:tiny_48khz"; else vocoder_config="hifigan:$size"; fi
  case "$size" in tiny) rows=4 codes=1024 ;; small) rows=1 codes=4096 ;; *) rows=1 codes=16384 ;; esac
  language_model=(--config.model.rows="$rows" --config.model.codebook_size="$codes" ${language_model[@]+"${language_model[@]}"})
  earlier=(encoder "muencoder:$size" ${encoder[@]+"${encoder[@]}"} -- autoencoder "mel_vae:$size" ${autoencoder[@]+"${autoencoder[@]}"} --)
fi
step "settings of all stages"
run python -m bandtok_jax.launch.check_stages ${earlier[@]+"${earlier[@]}"} \
  tokenizer "$tokenizer_config" ${tokenizer[@]+"${tokenizer[@]}"} -- vocoder "$vocoder_config" ${vocoder[@]+"${vocoder[@]}"} \
  -- language-model "language_model:$size" ${language_model[@]+"${language_model[@]}"}
stage "records: $music"
records=()
if [ "$system" = mucodec ]; then
  records=(--sample-rate=48000)
  [ "$size" = tiny ] || records+=(--clip-seconds=40) # clips of up to 36 seconds
fi
run bandtok prepare "$music" --output "$output/data" ${records[@]+"${records[@]}"} ${tracks[@]+"${tracks[@]}"} \
  ${licences[@]+"${licences[@]}"} ${share[@]+"${share[@]}"}
if [ "$system" = bandtok ]; then
  stage "tokenizer: audio to a grid of codes"
  train tokenizer "$tokenizer_config" "$data" ${tokenizer[@]+"${tokenizer[@]}"}
  round_tokenizer
  stage "vocoder: mel spectrograms to audio"
  train vocoder "$vocoder_config" "$data" ${vocoder[@]+"${vocoder[@]}"}
else
  stage "encoder: features of music, by masked prediction"
  train encoder "muencoder:$size" "$data" ${encoder[@]+"${encoder[@]}"}
  stage "autoencoder: mel spectrograms to latents and back"
  train autoencoder "mel_vae:$size" "$data" ${autoencoder[@]+"${autoencoder[@]}"}
  stage "vocoder: mel spectrograms to audio"
  train vocoder "$vocoder_config" "$data" ${vocoder[@]+"${vocoder[@]}"}
  stage "tokenizer: features to codes, and codes to latents"
  train tokenizer "$tokenizer_config" "$data" --config.encoder="$output/encoder" --config.autoencoder="$output/autoencoder" \
    --config.vocoder="$output/vocoder" ${tokenizer[@]+"${tokenizer[@]}"}
  round_tokenizer
fi
stage "tokens of the whole corpus"
run bandtok tokenize --model="$tokenizer_run" --data="$output/data" --output="$output/tokens" --offsets="$offsets"
stage "language model over the grid"
train language_model "language_model:$size" --config.data.tokens="$output/tokens" \
  --config.tokenizer="$tokenizer_run" --config.vocoder="$output/vocoder" ${language_model[@]+"${language_model[@]}"}
stage "export, generated music, report"
run bandtok export "$tokenizer_run" --vocoder="$output/vocoder" --language-model="$output/language_model" \
  ${half:+--half} -o "$output/model"
run bandtok generate --model="$output/model" ${prompt:+--prompt "$prompt"} --seconds "$seconds" --seed 1 -o "$output/generated.wav"
if [ "$system" = bandtok ]; then
  run python -m bandtok_jax.evaluation.report.run_page --runs "$output" --data "$output/data" --output "$output/report.html" \
    ${prompt:+--prompt "$prompt"}
else
  run bandtok evaluate --codec="$system=$output/model" --data="$output/data" --limit-seconds=120 --output="$output/report"
fi
