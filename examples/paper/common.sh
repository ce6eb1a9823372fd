# What the scripts of this folder share; each reads it first. Variables that they take:
#
#     DATA    what vit's --data takes (default: the preset cifar10, which is downloaded once; or a folder that holds it)
#     SIZE    cpu: minutes on two cores · gpu: larger models, longer runs · smoke: seconds, to see that it works
#     SEEDS   "0 1 2" (default: by SIZE)
#     OUT     the folder for runs, table.md and figure.png (default: paper/ and the claim's letter)
#
# A script that was stopped goes on where it was when it is run again, since its runs have their own folders.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DATA=${DATA:-cifar10}
SIZE=${SIZE:-cpu}
OUT=${OUT:-paper/$(basename "$0" | cut -c1)}

# sized SMOKE CPU GPU: the one of these that SIZE names.
sized() {
    case $SIZE in
        smoke) echo "$1" ;;
        cpu) echo "$2" ;;
        gpu) echo "$3" ;;
        *) echo "SIZE=$SIZE: smoke, cpu or gpu" >&2 && return 2 ;;
    esac
}

SEEDS=${SEEDS:-$(sized "0" "0 1" "0 1 2")}

# run NAME COMMAND [OPTION]…: a run in a folder of that name; its report, a JSON object, on stdout.
run() {
    local name=$1
    shift
    echo "$(date +%T)  $name" >&2
    vit "$@" --out "$OUT/runs/$name" --set eval.views=1 --quiet --json
}

# note KEY=VALUE…: from a report on stdin a line for the table, with these keys.
note() { python3 "$here/results.py" note "$@"; }

# table OPTION…: from such lines on stdin the table, on stdout and as table.md, and figure.png.
table() { python3 "$here/results.py" table --out "$OUT" "$@"; }

# halves: folders $OUT/../halves/first and second with the images of every second class of DATA, and of the others.
halves() {
    halves=$(dirname "$OUT")/halves
    python3 "$here/halves.py" "$DATA" "$halves"
}

data_name=$(basename "$DATA")
mkdir -p "$OUT"
