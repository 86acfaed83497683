#!/usr/bin/env bash
# A Ray cluster by hand, on machines that can reach each other, and a search on it.
#
#   ray_cluster.sh head [PORT]                        # on the first machine; prints what the others need
#   ray_cluster.sh worker HEAD:PORT                   # on every other machine, at any time
#   ray_cluster.sh search HEAD:PORT RUN WORDS...      # on one of them: begins the search, or goes on with it
#   ray_cluster.sh stop                               # on each
#
# All share one token, in ~/.ray/auth_token or RAY_AUTH_TOKEN: without it, everyone who reaches the port could run
# code. RAY_AUTH_MODE is set for all three, since Ray's own defaults differ between head, workers and driver.
set -euo pipefail

export RAY_AUTH_MODE=token
usage() {
  sed -n '4,7s/^#   //p' "$0" >&2
  exit 2
}
need_token() {
  if [[ -z ${RAY_AUTH_TOKEN:-} && ! -s ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]]; then
    echo "ray_cluster.sh: there is no token: copy ~/.ray/auth_token from the head, or set RAY_AUTH_TOKEN" >&2
    exit 1
  fi
}

case ${1:-} in
head)
  port=${2:-6379}
  if [[ -z ${RAY_AUTH_TOKEN:-} && ! -s ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]]; then
    ray get-auth-token --generate >/dev/null
  fi
  need_token
  ray start --head --port="$port" --disable-usage-stats
  echo "on the others, with this machine's ~/.ray/auth_token: ray_cluster.sh worker $(hostname):$port"
  ;;
worker)
  need_token
  ray start --address="${2:?HEAD:PORT}" --disable-usage-stats
  ;;
search)
  need_token
  export RAY_ADDRESS=${2:?HEAD:PORT}
  shift 2
  [[ $# -gt 0 ]] || usage
  exec bash "$(dirname "$0")/begin_or_resume.sh" "$@" evaluator=ray evaluator.address=auto evaluator.workers=auto
  ;;
stop) ray stop ;;
*) usage ;;
esac
