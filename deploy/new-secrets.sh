#!/bin/sh
# Draws the secrets of compose.yaml into .env beside it, and the key that Prometheus reads into secrets/scrape-key.
# What is there already stays.
set -eu
cd "$(dirname "$0")"

umask 077
drawn() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

if [ ! -e .env ]; then
  while IFS= read -r line; do
    case $line in
      [A-Z]*=) echo "$line$(drawn)" ;;
      *) echo "$line" ;;
    esac
  done <.env.example >.env.new
  mv .env.new .env
  echo "deploy/.env: new secrets; agents call with CORTEX_API_KEY"
fi

# In a folder that nobody else may enter, but readable: Prometheus runs as somebody else.
mkdir -p secrets
rm -f secrets/scrape-key
sed -n 's/^CORTEX_SCRAPE_KEY=//p' .env | tr -d '\n' >secrets/scrape-key
chmod 444 secrets/scrape-key
