# Loops, arithmetic, expansions, functions and a pipe of built-ins in busybox's shell.
add() { sum=$((sum + $1 * 3 % 11)); }
i=0 sum=0 text=
while [ "$i" -lt 6000 ]; do
	i=$((i + 1))
	add "$i"
	case $i in
	*00) text=$text${i%00}, ;;
	*7) : "${text##*,}" ;;
	esac
done
for w in a b c d e f g h; do
	text="$text $w$(echo "$sum $w")"
done
echo "$i $sum $text"
