#!/bin/sh
# Started by the TTNN library in place of a chip; the address to listen on is in its environment.
# scripts/ttnn-sim puts this file beside the virtual environment.
here=$(dirname "$(readlink -f "$0")")
exec "$here/../venv/bin/python" -u "$here/server.py" "$@"
