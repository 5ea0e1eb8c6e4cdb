# Counts the production lines of each source file. Sourced by ./dev.
# shellcheck shell=bash

size_warning=400
size_error=800

# Prints the largest files; fails when one is beyond the limit.
#
# All lines count, comments too, because all of them are read. Test files do not, nor does an
# inline test module: from its `#[cfg(test)]` to the `}` in the first column.
check_sizes() {
    find crates -name '*.rs' -path '*/src/*' \
        ! -name tests.rs ! -path '*/tests/*' ! -path '*/target/*' -print0 |
        xargs -0 awk -v warning="$size_warning" -v error="$size_error" '
            FNR == 1 { in_tests = 0; pending = 0 }
            in_tests { if (/^}/) in_tests = 0; next }
            pending { pending = 0; if (/^(pub(\([a-z]+\))? )?mod [a-z_]+ \{/) { lines[FILENAME]--; in_tests = 1; next } }
            /^#\[cfg\(test\)\]/ { pending = 1 }
            { lines[FILENAME]++ }
            END {
                for (file in lines) {
                    n = lines[file]
                    total += n
                    files++
                    if (n >= error) { failed = 1; word = "error: split it" }
                    else if (n >= warning) word = "warning: look twice"
                    else continue
                    printf "%6d  %s  %s\n", n, file, word | "sort -rn"
                }
                close("sort -rn")
                printf "%6d  production lines in %d files\n", total, files
                exit failed
            }
        '
}
