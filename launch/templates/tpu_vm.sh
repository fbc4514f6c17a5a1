#!/usr/bin/env bash
# {{name}}: trains on TPUs {{slice}}. Requests a queued resource of Cloud TPU, and another one after a preemption.
# Keep this script running (tmux, a small machine). The training runs in a container on the hosts of the TPU and does not
# end with this script. A restarted script continues with the existing resource.
set -euo pipefail
name={{name}}
where=(--project={{project}} --zone={{zone}})
wanted=(--accelerator-type={{slice}} --runtime-version={{runtime_version}}{{spot}})
# Starts the container on a host, unless it is running.
start={{start}}
max_restarts={{max_restarts}} poll_seconds="${POLL_SECONDS:-30}"

say() { echo "$(date -u +%H:%M:%S) $*" >&2; }
state() { gcloud compute tpus queued-resources list "${where[@]}" --filter="name~/$name\$" --format="value(state.state)"; }
create() { gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" "${wanted[@]}" --quiet; }
delete() { gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }
on_hosts() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --quiet --command="$1"; }

restarts=0 failed_starts=0
again() {
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "$max_restarts" ]; then
    say "more than $max_restarts restarts: deleting $name"
    delete
    exit 1
  fi
}
# Prints the outcome of the exit codes of all hosts: complete, error (ours, docker's, no such program), or again (42,
# killed, aborted).
outcome() {
  local result=complete code
  for code in $1; do
    case "$code" in
      0) ;;
      1 | 2 | 125 | 126 | 127) result=error; break ;;
      *) result=again ;;
    esac
  done
  echo "$result"
}

say "logs: gcloud compute tpus tpu-vm ssh $name ${where[*]} --worker=0 --command='sudo docker logs --follow bandtok'"
say "to end it and its cost: gcloud compute tpus queued-resources delete $name ${where[*]} --force"
while true; do
  state="$(state)"
  case "$state" in
    "")
      say "requesting ${wanted[*]}"
      create ;;
    ACTIVE)
      if ! on_hosts "$start"; then
        failed_starts=$((failed_starts + 1))
        if [ "$failed_starts" -ge 5 ]; then
          say "the container does not start, five times in a row: deleting $name"
          delete
          exit 1
        fi
        sleep "$poll_seconds"
        continue
      fi
      failed_starts=0
      say "training"
      if ! codes="$(on_hosts 'sudo docker wait bandtok')"; then
        say "the connection is lost; connecting again"
        sleep "$poll_seconds"
        continue
      fi
      # shellcheck disable=SC2086  # one word a host
      say "exit codes of the hosts:" $codes
      case "$(outcome "$codes")" in
        complete)
          say "complete: deleting $name"
          delete
          exit 0 ;;
        error)
          on_hosts 'sudo docker logs --tail=20 bandtok' || true
          say "an error that no restart cures, see above: deleting $name"
          delete
          exit 1 ;;
        again)
          again
          on_hosts 'sudo docker rm --force bandtok' || true ;;
      esac ;;
    SUSPENDED | FAILED)
      say "$state: requesting another one"
      again
      delete ;;
    *)
      say "$state"
      sleep "$poll_seconds" ;;
  esac
done
