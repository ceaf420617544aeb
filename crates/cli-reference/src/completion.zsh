# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# completion.zsh FOLDER LINE: what LINE is after the key that completes it, in a shell on a terminal
# that finds definitions in FOLDER. Completion works nowhere else.
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "fpath=(${(q)1} \$fpath); autoload -Uz compinit; compinit -u -D
show() { print -r -- \"LINE=\$BUFFER=END\" }; zle -N show
bindkey '^I' complete-word; bindkey '^X' show; print ready\$((1))"
zpty -r shell out '*ready1*'
zpty -w -n shell "$2"$'\t\x18'
zpty -r shell out '*LINE=*=END*'
print -r -- "${${out##*LINE=}%%=END*}"
