#!/bin/sh
# A dot in its name: run-parts passes over it.
: > "$TARGET/root/hook.must-not-exist"
