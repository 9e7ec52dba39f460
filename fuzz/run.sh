#!/usr/bin/env bash
# Fuzzes one target, all, or all that are quick to build (all but config), for so many seconds each:
#     fuzz/run.sh [TARGET|all|quick] [SECONDS]
# New inputs that reach new code stay in target/fuzz-corpus; what fails stays in fuzz/artifacts and ends this with an error.
#
# These are cargo-fuzz targets, and `cargo fuzz run TARGET` works with a nightly toolchain. Here the same instrumentation is
# asked of a stable compiler (edges, counters and comparisons), without the address sanitizer, which stable does not offer; the
# decoders have no `unsafe`. FUZZ_ADDRESS_SANITIZER=1 asks for it all the same, by RUSTC_BOOTSTRAP.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

target=${1:-all}
seconds=${2:-60}
host=$(rustc -vV | sed -n 's/^host: //p')
build=../target/fuzz
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1 -Cforce-frame-pointers"
if [[ -n ${FUZZ_ADDRESS_SANITIZER:-} ]]; then
    export RUSTC_BOOTSTRAP=1
    flags+=" -Zsanitizer=address"
    build=../target/fuzz-address
fi

# With --target build scripts and macros are built without the instrumentation, which they could not link.
targets=(native http ndjson reply cursor record segment header superblock checkpoint)
features=libfuzzer
case $target in
quick) ;;
all) targets+=(config) ;;
*) targets=("$target") ;;
esac
[[ ${targets[-1]} != config ]] || features+=,config
bins=()
for name in "${targets[@]}"; do bins+=(--bin "$name"); done
RUSTFLAGS=${flags//$'\n'/ } cargo build --release --features "$features" --target "$host" --target-dir "$build" "${bins[@]}"

for name in "${targets[@]}"; do
    mkdir -p "../target/fuzz-corpus/$name" "artifacts/$name"
    log=../target/fuzz-corpus/$name.log
    # 64 KiB holds whole segments of several batches; more only slows it down.
    if ! "$build/$host/release/$name" -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="artifacts/$name/" \
        "../target/fuzz-corpus/$name" "corpus/$name" >"$log" 2>&1; then
        tail -40 "$log" >&2
        echo "fuzz: $name failed; the input is in fuzz/artifacts/$name" >&2
        exit 1
    fi
    covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1 || true)
    features=$(grep -o 'ft: [0-9]*' "$log" | tail -1 || true)
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    printf '%-11s %10s executions, %s edges, %s features\n' "$name" "$runs" "${covered#cov: }" "${features#ft: }"
done
