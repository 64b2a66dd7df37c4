"""How people and models word a final answer: what states one, takes it back, judges it, or stands around it.

Each takes linear time: it bounds its runs of blanks, or starts at a word. `final` says what they mean together.
"""

from __future__ import annotations

import re

from transformer2.verifiers.boxes import BOX


def _phrases(text: str) -> str:
    """Alternatives as a pattern: any white space for a blank."""
    return "(?:" + text.replace(" ", r"\s+") + ")"


_HEADING = r"[ \t>*#]{0,20}(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answer[ \t*]{0,20}\n"
STATED = re.compile(
    rf"(?P<hash>(?<!#)####(?!#)(?!{_HEADING}))"
    rf"|(?P<tag><answer>)|(?P<boxed>{BOX.pattern})"
    r"|(?P<chosen>\bI(?:'d|'ll|\s+would|\s+will|\s+am|'m)?\s+(?:choos(?:e|ing)|pick(?:ing)?|select(?:ing)?|go(?:ing)?\s+with)\b"
    r"|\bI\s+(?:think|believe|would\s+say)\s+(?:that\s+)?(?:it's|it\s+(?:is|must\s+be))\b)"
    r"|(?P<so>(?:^|(?<=[.!?,;:])\s)[ \t]{0,9}(?:so|thus|hence|therefore)\b[\s,:]+)"
    rf"|(?P<heading>^{_HEADING})"
    r"|(?P<final>^[ \t>*#]{0,20}(?:my[ \t]+)?(?:final|conclusion|verdict|choice)[ \t*]{0,20}:)"
    r"|(?P<said>(?:\bthe\s+)?(?:\b(?:correct|final|right|best)\s+(?:answer|option|choice)|\bans(?:wer)?)\b"
    r"(?:\s{1,9}(?:to|for|of|here)\b[^.:\n]{0,80}?)?[\s*\"]{0,9}"
    r"(?:\b(?:is|isn't|would be|must be|should be)\b\s{0,9}:?|:|=))",
    re.IGNORECASE | re.MULTILINE,
)
_PAUSE = r"[,.!;:\u2014\u2026*-]"
_IT = _phrases(
    r"(?:it|that|this|(?:the|my)(?: (?:correct|right|real|actual|final|true))?"
    r" (?:answer|one|option|choice|value|number|result|total))"
    r"(?:'s| is| was| (?:must|would|should|has to) be| should have been)\b"
)
_WRONG = _phrases(
    r"(?:\w+ly |all |just |simply )?(?:wrong|off|too \w+"
    r"|incorrect|mistaken|false|untrue|invalid|(?:an )?extraneous|a (?:mistake|typo|joke|misprint)|an error"
    r"|(?:rejected|discarded|excluded|ruled out)"
    r"|not (?:\w+ly |the )?(?:right|correct|true|accurate|valid|good"
    r"|(?:an? |in )?(?:solution|root|answer|domain|range))\b)"
)
_OWN = _phrases(
    r"(?:that|this|it|which|I|what I (?:said|wrote)"
    r"|(?:what is|everything|all|the) above|(?:that|this|the|my)(?: \w+)?"
    r" (?:answer|statement|response|reasoning|claim|conclusion|solution|root|one|option|choice|value|number|result"
    r"|total)(?: (?:above|here|given))?)"
)
_CHECK = r"(?:verif|check|double|confirm|test)\w*"
_WE = r"(?:let (?:me|us)|let's|we|I)\b"
_WITHDRAWN = _phrases(
    rf"wait\b(?!,? {_WE}[^.\n]{{0,20}}\b{_CHECK})"
    rf"(?=\s*(?:{_PAUSE}|$)| (?:no|actually|that|this|let|I|it|sorry)\b)|(?:wh)?oops\b|never ?mind\b|correction\b"
    rf"|no(?:pe)?\b(?=\s*{_PAUSE}| (?:wait|sorry|actually|it|that|I)\b)|(?:hold|hang) on\b|not so fast\b"
    r"|not (?:quite|exactly)(?=\s*[,.:;!])|(?:one|just a) (?:moment|second|minute)\b"
    r"|on reflection\b|(?:on )?second thoughts?\b|come to think of it\b"
    r"|(?:scratch|strike|ignore|forget|disregard) that\b"
    r"|my (?:mistake|bad|apologies|error)\b"
    rf"|(?:(?:however|but|in fact),? )?{_OWN}(?:'s|'m| is| am| was| seems| looks| must be| seems to be) {_WRONG}"
    rf"|{_OWN} (?:(?:is|was|does|do|did|could)(?: not|n't)|can't|cannot|can not)(?: be| seem| look| sound)?(?: to be)?"
    r" (?:the |quite )?(?:right|correct|true|accurate|final)\b(?! (?:of|for)\b)"
    rf"|(?!this |it ){_OWN} (?:(?:does|do|did)(?: not|n't) (?:add up|make (?:any )?sense|work|fit|hold|check out)"
    r"|is (?:impossible|absurd|nonsens\w+|implausible|unreasonable|not (?:possible|plausible|reasonable))"
    r"|makes no sense|(?:can't|cannot|can not|could not|couldn't) be)(?=\s*(?:[.,!;:]|$))"
    r"|not(?=\s*(?:[.!]\s*){0,3}$)"
    r"|(?:both|all|these)(?: \w+)? are (?:extraneous|invalid|wrong|incorrect|rejected)\b"
    r"|(?:false|wrong|incorrect|untrue|(?:a )?typo|not (?:right|correct|true))\b(?=\s*(?:[.,!;:]|$))"
    r"|I(?:'ve| have)? changed my mind\b|(?:I(?:'m| am| was) )?(?:just|only) (?:kidding|joking)\b"
    r"|I (?:retract|withdraw|doubt (?:it|that|this|my))\b"
    r"|(?:disregard|ignore|forget|scratch|strike) (?:the|this|what|my|all|everything|it)\b[^.,;:!?\n]*|wait an? \w+\b"
    r"|I (?:made an?(?: \w+)? (?:mistake|error)|was (?:wrong|mistaken)|mis[a-z]{4,}|forgot|stand corrected"
    r"|take (?:that|it) back|apologi[sz]e|messed up)\b"
    r"|let me (?:re-?(?:calculate|compute|consider|do|think|count|vise)"
    r"|(?:correct|fix)(?: that| this| it)?|start over|(?:try|think) again)\b"
)
_CHANGED = _phrases(
    r"hm+\b|actually\b|sorry\b|apologies\b|(?:or )?rather\b(?! than)|I (?:really )?meant?\b|edit:|instead,"
    r"|I(?:'d| would) (?:rather|sooner|now)(?: (?!not)\w+)? (?:say|go (?:with|for)|pick|choose|take)\b|then again\b"
    r"|make (?:that|it)\b"
    r"|(?:(?:I(?:'ll| will| would| should)?|let me) )?chang(?:e|ing) (?:that|it|my (?:final )?answer) to\b"
    r"|(?:it|that|this|the (?:result|total|value|number)) should (?=be\b|have\b)"
    rf"|(?:however|but|in fact|looking again|on closer \w+)\b(?=,? {_IT})"
    rf"|(?P<checks>wait\b,? {_WE}[^.\n]{{0,20}}\b{_CHECK}|let me (?:{_CHECK}|re-?(?:check|examine|evaluate))\b)"
)
# Only at the start of a sentence: what follows may replace the answer.
_TURNED = _phrases(
    r"(?:but|however|instead|in (?:fact|truth|reality)|yet|although|still|nevertheless"
    r"|to be (?:honest|fair|precise)|honestly"
    r"|correct(?:ed|ing)|updat(?:ed?|ing)|revis(?:ed?|ion|ing)|amended|fixed|changed|new answer|better(?=\s*:)"
    r"|(?:after|(?:up)?on|thinking|looking|reading|considering|reconsidering)(?: \w+){0,4}(?=\s*[,:])|reconsidering)\b"
    r"|(?=not\b)"
)
_MORE = _phrases(r"(?:or|and|also|plus|as well as|alternatively)\b")
_ALSO = _phrases(
    r"(?:it|that|the answer) (?:could|might|may|can) (?:(?:also|equally) be\b|be (?=[(\[]?\w\b))|alternatively\b"
    r"|(?:maybe|perhaps|possibly)\b(?!\s*\))"
)
_KEPT = _phrases(
    r"ye(?:s|p|ah)\b"
    r"|(?:that|this|it|which|(?:the|my) answer)(?:'s| is| was) (?:(?:indeed|still) )?(?:right|correct|fine)\b"
    r"|(?:the|my)(?: \w+)? answer (?:still )?(?:stands|holds)\b"
)
# Groups are repeated in an atomic group and not possessively, here and below: until Python 3.11.4 a possessive repeat
# of a group that can backtrack matches less than it should (gh-106052).
SECOND_THOUGHT = re.compile(
    r"(?:^|(?<=[.!?,;:(\u2014\u2026-])|(?<=\})\$?|\b(?:oh|ah|hm+|um|uh|but|or|and|so|then|no)\b,?)"
    r"(?>(?:[ \t*_\"(]|(?<!\n)\n){0,8})"
    rf"(?:(?P<withdrawn>{_WITHDRAWN})|(?P<changed>{_CHANGED})|(?P<also>{_ALSO})|(?P<kept>{_KEPT}))"
    rf"|(?:^|(?<=[.!?;]))[ \t*_\"(]{{0,8}}+(?:(?P<turned>{_TURNED})|(?P<more>{_MORE}))",
    re.IGNORECASE | re.MULTILINE,
)
_SAYS = _phrases(
    r"(?:should )?(?:be|have been)|is (?:it|that|this)|I (?:meant?|think)|go(?:ing)? with|no|wait|actually|sorry|so"
)
FILLER = re.compile(
    rf"(?:[\s,.:;!*\u2014\u2026-]*+(?:{_IT}|{_SAYS}\b))*(?:[\s,:;!*\u2014\u2026]|\.(?!\d))*",
    re.IGNORECASE,
)
LATER = re.compile(
    rf"(?:[.,;]\s*(?:(?:so|thus|hence|therefore|but|rather)\b,?\s*)?{_IT}|,?\s+(?:but|rather(?!\s+than))\b)",
    re.IGNORECASE,
)
_GOOD = r"(?:right|correct|fine|possible|good|plausible|valid|acceptable|reasonable|an? (?:option|possibility))\b"
_FITS = _phrases(rf"(?:is|could be|might be|may be|can be|would be) {_GOOD}|(?:could|might|may|can) (?:work|fit)\b")
_ALSO_FITS = _phrases(rf"(?:is|could|might|may|can) (?:also|equally) (?:be )?(?:{_GOOD}|(?:work|fit)\b)")
# "B is the correct answer", "B is wrong", "it can't be B", "x = 5 is extraneous", "C works too", "C it is"
JUDGED = re.compile(
    r"\b(?:is|was|would\s+be|seems|must\s+be)\s+(?:therefore\s+|indeed\s+)?(?:(?P<right>"
    r"(?:(?:the|my)\s+)?(?:(?:most\s+likely\s+)?(?:correct|right|best|better|final)"
    r"(?:\s+(?:answer|option|choice|one))?|answer))(?=\s{0,9}(?:[.,:;!*]|$|because\b|since\b))"
    rf"|(?P<out>(?:(?:an?|also|in\s+fact)\s+)?(?:extraneous|rejected|discarded|excluded|ruled\s+out|impossible|invalid)\b"
    r"|not\s+(?:(?:an?|in|the)\s+)?(?:valid|possible|allowed|solution|root|domain)\b)"
    rf"|{_WRONG}|not\s+the\b)|\b(?:isn't|can't\s+be|cannot\s+be|is\s+not)\b"
    r"|\b(?P<fails>(?:does\s+not|doesn't|do\s+not|don't|fails\s+to)\s+(?:work|satisfy|hold|check\s+out|fit)\b|fails\b"
    r"|makes\s+(?:the|an?)\s+(?:\w+\s+)?\w+\s+(?:zero|undefined|negative|0)\b)"
    r"|\b(?P<rejected>(?:reject|discard|exclude|rule\s+out)\b)"
    rf"|\b(?P<too>(?:(?:works|fits|would\s+(?:do|work|fit))|{_FITS})\s+(?:just\s+)?(?:too|as\s+well|also)\b"
    rf"|also\s+(?:works|fits)\b|{_ALSO_FITS})"
    r"|\b(?P<after>it\s+is|after\s+all|instead|though|it\s+should\s+be|it\s+must\s+be)(?=\s{0,9}(?:[.!;]|$))",
    re.IGNORECASE | re.MULTILINE,
)
SENTENCE_START = re.compile(
    r".*(?:[.!?:;](?=\s)|\b(?:so|thus|hence|therefore|then|actually|indeed|yes|no|but|however)\b,?|\n)",
    re.DOTALL | re.IGNORECASE,
)
NO_ANSWER = re.compile(  # "the least likely answer"
    r"\b(?:least|worst|wrong|incorrect|other|false|bad|poor|distractor|distracting|unlikely|common|popular|tempting"
    r"|alternative|(?<!only )possible|(?:check|verify|confirm)(?:ing)?\s+(?:our|the|this|my)"
    r"|previous|earlier|initial|rejected|opposite|trap|naive|mistaken|erroneous)(?:\s+\w+)?\s+\Z",
    re.IGNORECASE,
)
# A clause that a statement depends on denies it: by a negation of a word of saying or holding ("nobody said"),
# by any negation before "that", or by an adjective. "There is no doubt that" and "it is not hard to see that" affirm.
_NO = r"(?:\b(?:not|never|no|no\s+one|nobody|none|neither|nor|cannot|hardly|without)\b|n't\b)"
_AFFIRMS = _phrases(
    r"(?! (?:\w+ ){0,2}?(?:doubt|question|deny(?:ing)?|secret|surpris\w+|hard|difficult|only|matter|wonder"
    r"|wrong|false)\b)"
)
_HOLDS = _phrases(
    r" (?:think|believe|say|said|mean|claim|conclude|determine|find|found|show|prove|know|see|assume|infer|deduce"
    r"|guarantee|state|tell|be|sure|certain|convinced|clear|true|correct|right|likely|possible|plausible|case|way|chance"
    r"|means|evidence|proof|reason)(?:e?[sd]|ing)?(?: to (?:say|think|believe|claim|conclude|assume))?"
)
_WITHIN = r"\s+(?!(?:so|thus|hence|therefore|but|and|then|because|since|as)\b)[\w']+"
_NOT_SO = _phrases(
    r"(?:im(?:possible|plausible)|improbable|incorrect|unlikely|untrue|false|wrong|absurd|doubtful"
    r"|(?:hard|difficult)(?= to believe))(?: to \w+)?"
)
_DENIED = (
    rf"(?P<denied>{_NO}{_AFFIRMS}(?:{_WITHIN}){{0,8}}?(?:{_HOLDS}|(?=\s+that\s+\Z))"
    rf"|(?<!\bnot\s)(?<!n't\s)\b{_NOT_SO})"
)
SUPPOSED = re.compile(
    rf"(?:{_DENIED}|\b(?:if|whether|unless|(?<!no )doubt|suppose|assum\w+)"
    r"|\b(?:might|may|could|would)\s+(?:\w+\s+)?(?:think|say|believe|guess)"
    r"|\b(?:people|students?|some|many|most|others|everyone|everybody|they|he|she)(?:\s+\w+){0,2}"
    r"\s+(?:think|say|believe|guess|assume|answer|claim|conclude)s?"
    r"|\b(?:mistake|error|misconception|trap|tempting)\b(?:(?!\b(?:so|thus|hence|therefore|but)\b)[^.,;:!?\n]){0,40}"
    r")\s+(?:that\s+)?\Z",
    re.IGNORECASE,
)
# Around a box: what denies it, what makes it a part of something, or one of several.
BOX_STATED = re.compile(  # what leads to a box, after which a clause may stand that denies it
    r"(?:(?:\bthe|\bmy|\bour)\s+)?(?:(?:\b(?:correct|final|right|best)\s+)?\b(?:answer|result|value|total)|\bit)"
    r"(?:\s+(?:is|was|be|would\s+be|must\s+be|should\s+be))?[\s:]{0,9}[\s$*(\\\[]{0,9}\Z",
    re.IGNORECASE,
)
BOX_DENIED = re.compile(
    r"(?:\bnot|n't|\b(?:cannot|can't) be|\b(?:wrong|incorrect) answer is|\brather than|\binstead of|\bmistake is"
    r"|\b(?:unlikely|im(?:possible|probable)) to be)"
    r"[\s$*(\\\[]{0,9}\Z",
    re.IGNORECASE,
)
OPENING = re.compile(r"(?:[\s*:]|(?:\\\[|\$\$)\s|```\w*\n)*")  # up to an answer, perhaps in a block of its own
NO_LINE = re.compile(r"\s*(?:\\[\[\]]|\$\$|```\w*)?\s*")
MARKUP = re.compile(r"</?[A-Za-z]\w*>|^[ \t]{0,3}>", re.MULTILINE)  # <answer>, and the mark of a quotation
PART_BEFORE = re.compile(
    r"(?:(?:[$=]|\\[(\[])\s*-[{(]*|[\d^|/][{(]*|(?:\+|(?<![-=])[<>])\s*|\\(?:cdot|times|neq?|sqrt|frac(?:\{\w*\})?)[\s{]*)\Z"
)
PART_AFTER = re.compile(
    r"[) \t]{0,9}(?:\\(?:pi|cdot|times)\b|\^(?!\{?\\circ)|[+/|]|\*(?!\*|\s|\Z)|\}\s*\{"
    r"|[\s$]{0,9}(?:hundred|thousand|million|billion|dozen)\b)"
)
ENDS_IN_A_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?>(?:[^{}]|\{[^{}]*\})*))\}[\s$.)\]*\\]*\Z")
OR_BEFORE = re.compile(
    r"(?<!of )(\$(?!\\boxed|\\fbox)[^$\n]{1,40}(?<!,)\$|\\\([^()\n]{1,40}\\\)|(?<![A-Za-z\d])-?\d[\d.,/]*|\b[A-Z])"
    r"\s+or\s+[\s$*(\\\[]{0,9}(?P<name>[A-Za-z]\s*=)?\s*\Z"
)
ASKED = re.compile(r"[\s$)*\]\\]{0,9}\?")
# "- 72" and "1. 72" are 72, on a line of their own; but "72. She has ..." is a sentence, and "B. plant" an option
MARKER = re.compile(r"[ \t]*(?:[-*\u2022][ \t]+(?=\S)|\d{1,2}[.)][ \t]+(?=[^\sA-Za-z]))")
LISTED = re.compile(
    r"[\s$)*.\]\\]{0,9}(?:\\text\s*\{\s*)?(?:(?P<comma>[,/;&|])|\bor\b|\band\b)[\s}]{0,9}", re.IGNORECASE
)
A_HEADING = re.compile(  # "#### 2. Check", "#### Step 3: Multiply", "#### Explanation", "#### Cost of 3 apples:"
    r"[\s*_]*(?:\d{1,2}[.)]\s+(?-i:[A-Z])[A-Za-z]*(?:\s+[A-Za-z]+){0,3}[\s*:]*"
    r"|(?:step|part|case|phase|stage|section|question|problem|exercise|example)\s*#?\d+\b.*"
    r"|(?:explanation|verification|check|note|summary|reasoning|solution|justification|conclusion)s?\b[^\d\n]*"
    r"|(?=[^\n]*[A-Za-z])[^\n]*:[\s*]*)",
    re.IGNORECASE,
)
FIRST_SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=\S)")
A_SENTENCE = re.compile(r"[^.!?;\n]++(?=[.!;\n]|\Z)")
CHECKS = re.compile(r"\bsorry|\bapologies", re.IGNORECASE)
NOT = re.compile(r"(?:(?:definitely|certainly)\s+)?(?:not|never)\b\s*", re.IGNORECASE)
CONJUNCTION = re.compile(r"[\s,;]*\b(?:or|and|so|but)\s*\Z", re.IGNORECASE)
NAMED = re.compile(r"(?:[a-z](?:_\w)?|\\?[a-z]+)\s*=\s*\Z", re.IGNORECASE)
BECAUSE = re.compile(
    r"(?:[,;]\s*|\s)\(?(?:because|since|as(?!\s+(?:well|many|much|follows))|where|given\s+that|due\s+to|thanks\s+to"
    r"|i\.e|namely|that\s+is(?=,)"
    r"|which(?!\s+(?:rounds|is\s+(?:about|approximately|roughly|not)|isn't))|obtained|(?:and\s+)?not(?=\s+(?-i:[^a-z\s]))"
    r"|rather\s+than|instead\s+of|as\s+opposed\s+to)\b|\u2014\s*(?!(?:or|and|no|not|but|if|maybe|perhaps)\b)(?=[A-Za-z])",
    re.IGNORECASE,
)


def is_list(between: str, before: str, after: str) -> bool:
    """Whether two statements with this text between them are one list of answers."""
    between = NAMED.sub("", between.strip(" \t\n$*()\\[]")).strip(" \t\n,;.*$)(\\[]").lower()
    alike = after in (before, "line") or {before, after} == {"said", "heading"}
    return re.fullmatch(r"or|and|text\{ ?(?:or|and) ?\}|[/|&]", between) is not None or (between == "" and alike)
