"""Questions, and the same questions as other people write them: case, marks, white space, markup, Unicode, typos."""

import random
import unicodedata

# fmt: off
WORDS = [
    "anchor", "barrel", "candle", "dragon", "engine", "fabric", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "magnet", "napkin", "orchid", "pencil", "quartz", "ribbon", "saddle", "tablet", "umbrella", "violin",
    "walnut", "xylophone", "yogurt", "zipper", "bridge", "copper", "desert", "falcon", "glacier", "harbour",
    "insect", "jungle", "kernel", "lantern", "mirror", "needle", "oxygen", "puzzle", "raincoat", "sapphire",
    "tunnel", "uniform", "volcano", "wagon", "café", "straße", "über", "naïve", "Größe", "señor", "where", "does",
    "anyone", "repair", "which", "should", "remain", "together", "about", "before", "under",
]
# fmt: on

TYPOS = ("drop", "double", "swap", "replace")


def make_question(rng, words):
    """A question of so many words in random order."""
    return " ".join(rng.sample(WORDS, words)).capitalize() + "?"


def change_case(rng, text):
    return rng.choice([str.upper, str.lower, str.title, str.swapcase])(text)


def change_marks(rng, text):
    marked = text.rstrip("?") + rng.choice(["", " ?", "??", "!", " …", "?!"])
    words = marked.split(" ")
    words[len(words) // 2] += rng.choice([",", ";", " -", ":"])
    return rng.choice(["{}", "“{}”", "«{}»", "'{}'", "({})", "¿{}"]).format(" ".join(words))


def change_white_space(rng, text):
    return rng.choice([" ", "\n", "\t"]) + rng.choice(["  ", "\n", "\t", "\u00a0", " \r\n "]).join(text.split(" "))


def change_markup(rng, text):
    words = text.split(" ")
    at = rng.randrange(len(words))
    words[at] = rng.choice(["<b>{}</b>", '<a href="x.html">{}</a>', "**{}**", "_{}_", "`{}`", "[{}](x.html)"]).format(
        words[at]
    )
    joined = rng.choice([" ", "<br>", "<br />\n", "&nbsp;"]).join(words)
    return rng.choice(["{}", "<p>{}</p>", '<div class="q"><p>{}</p></div>', "# {}", "&quot;{}&quot;"]).format(joined)


def change_unicode(rng, text):
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)
    return rng.choice([unicodedata.normalize("NFD", text), wide, text.replace("e", "e\u00ad"), without_accents(text)])


def without_accents(text):
    return "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))


def add_typo(rng, text):
    """One letter is missing, twice there, another one, or in the place of the next one."""
    at = rng.choice([at for at in range(len(text) - 1) if text[at].isalpha() and text[at + 1].isalpha()])
    typed = {
        "drop": text[at + 1 :],
        "double": text[at] * 2 + text[at + 1 :],
        "swap": text[at + 1] + text[at] + text[at + 2 :],
        "replace": rng.choice("abcdefghijklmnopqrstuvwxyz") + text[at + 1 :],
    }
    return text[:at] + typed[rng.choice(TYPOS)]


CHANGES = {
    "case": change_case,
    "marks": change_marks,
    "white space": change_white_space,
    "markup": change_markup,
    "Unicode": change_unicode,
    "typo": add_typo,
}


def plant_variants(seed, count):
    """`count` groups of a question and one variant by each change; a typo only in questions of at least 8 words."""
    rng = random.Random(seed)
    groups = []
    for _ in range(count):
        words = rng.randint(3, 16)
        question = make_question(rng, words)
        groups.append([question, *(change(rng, question) for name, change in CHANGES.items()
                                   if name != "typo" or words >= 8)])  # fmt: skip
    return groups
