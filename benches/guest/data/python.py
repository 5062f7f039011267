# Builtins alone: the minimal package has few modules.


class Node:
    __slots__ = ("key", "left", "right")

    def __init__(self, key):
        self.key = key
        self.left = self.right = None


def insert(root, key):
    while True:
        if key == root.key:
            return
        side = "left" if key < root.key else "right"
        below = getattr(root, side)
        if below is None:
            setattr(root, side, Node(key))
            return
        root = below


def walk(node):
    if node is not None:
        yield from walk(node.left)
        yield node.key
        yield from walk(node.right)


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def primes(n):
    sieve = bytearray([1]) * n
    for i in range(2, int(n**0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, n, i)))
    return sum(sieve[2:])


words = {}
seed = 12345
root = Node(1 << 15)
for i in range(9000):
    seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
    word = "w%d" % (seed % 700)
    words[word] = words.get(word, 0) + 1
    insert(root, seed >> 15)
keys = list(walk(root))
assert keys == sorted(set(keys))
top = sorted(words.items(), key=lambda kv: (-kv[1], kv[0]))[:5]
text = " ".join(w.upper()[::-1] for w, _ in top)
total = sum(x * x % 7 for x in range(40000))
print(len(keys), top, text, fib(18), primes(60000), total, 3**400 % 10**30, sum(map(float, range(5000))) / 3)
