#!/bin/sh
# Print "export JAVA_HOME=..." for a Java of version 17 or newer. Looks at JAVA_HOME, the
# path and the usual folders; installs a headless one through the system's package manager
# where this user may, otherwise says what to install and fails.
set -eu

version_of() { # major version of the java program $1, or 0
    "$1" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1 | grep . || echo 0
}

use() { # print the export for the java program $1, if it is new enough
    [ -x "$1" ] || return 1
    [ "$(version_of "$1")" -ge 17 ] 2>/dev/null || return 1
    program=$(readlink -f "$1" 2>/dev/null || echo "$1")
    home=$(dirname "$(dirname "$program")")
    echo "export JAVA_HOME='$home'"
    exit 0
}

look() {
    if [ -n "${JAVA_HOME:-}" ]; then use "$JAVA_HOME/bin/java" || true; fi
    if [ -x /usr/libexec/java_home ]; then # macOS
        home=$(/usr/libexec/java_home -v 17+ 2>/dev/null || true)
        if [ -n "$home" ]; then use "$home/bin/java" || true; fi
    fi
    found=$(command -v java 2>/dev/null || true)
    if [ -n "$found" ]; then use "$found" || true; fi
    for candidate in /usr/lib/jvm/*/bin/java /opt/java/*/bin/java /opt/homebrew/opt/openjdk*/bin/java; do
        use "$candidate" || true
    done
}

look
run=
if [ "$(id -u)" -eq 0 ]; then
    run=env
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    run="sudo -n env"
fi
if [ -n "$run" ]; then
    echo "No Java 17 or newer found: installing a headless one." >&2
    if command -v apt-get >/dev/null 2>&1; then
        $run apt-get update -qq >&2 || true
        for package in openjdk-17-jre-headless openjdk-21-jre-headless default-jre-headless; do
            if $run DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "$package" >&2; then
                break
            fi
        done
    elif command -v dnf >/dev/null 2>&1; then
        $run dnf install -y -q java-17-openjdk-headless >&2 || true
    elif command -v apk >/dev/null 2>&1; then
        $run apk add --quiet openjdk17-jre-headless >&2 || true
    fi
    look
fi
cat >&2 <<'TEXT'
Spark needs Java 17 or newer, and there is none here. Install one and run this again:
  Debian, Ubuntu   sudo apt-get install openjdk-17-jre-headless
  Fedora, RHEL     sudo dnf install java-17-openjdk-headless
  macOS            brew install openjdk@17
or set JAVA_HOME to one that is installed elsewhere.
TEXT
exit 1
