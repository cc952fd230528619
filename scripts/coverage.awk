# Of a file that `gcov --branch-probabilities --branch-counts` wrote: how much was reached; of a file
# whose name is in `all`, what was not.
BEGIN { FS = ":" }
$1 ~ /Source/ || $3 == "Source" { name = $4 }
/^ *(#####|=====):/ { lines++; missed[++misses] = trimmed($0); next }
/^ *[0-9]+\*?:/ { lines++; reached++; line = trimmed($0); next }
/^branch/ {
  branches++
  if ($0 ~ /taken [1-9]/) taken++
  else if ($0 !~ /never executed/) missed[++misses] = "not both ways: " line
}
END {
  printf "%s: %d of %d lines, %d of %d branches\n", name, reached, lines, taken, branches
  if (index(all, last(name))) for (i = 1; i <= misses; i++) print "  " missed[i]
}
function trimmed(text) { sub(/^ *[^:]*: */, "", text); return text }
function last(path) { sub(/.*\//, "", path); return path }
