# Names of devices and nodes are asked of dstd itself when they are wanted. Topologies that are on the line already are
# those whose names an option takes; a command's own words are names of the kernel's.
_dstd_names() {
    local word what='' own=0 paths=()
    _dstd "$@" || true
    if ((COMP_CWORD < 2)) || [[ $2 == -* ]]; then
        return 0
    fi
    for word in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do
        [[ $word == -* ]] || own=$((own + 1))
        [[ ! -e $word ]] || paths+=("$word")
    done
    case "${COMP_WORDS[1]} $3" in
@OPTIONS@
    esac
    if [[ $what ]]; then
        COMPREPLY=($(compgen -W "$("$1" names "$what" ${paths[@]+"${paths[@]}"} 2>/dev/null)" -- "$2"))
        return 0
    fi
    case "${COMP_WORDS[1]} $own" in
@POSITIONALS@
    esac
    if [[ $what ]]; then
        COMPREPLY+=($(compgen -W "$("$1" names "$what" 2>/dev/null)" -- "$2"))
    fi
    return 0
}
