"""Sentences of a review: splitting, and telling those that describe the product from those about the writer.

Rules only, for English and Chinese: a sentence stays when it names a garment or a part of one, and neither the writer,
the purchase, other buyers, the pictures nor a fault. Does not rewrite: tidying changes only the first letter, spaces
and the final mark.
"""

from __future__ import annotations

import re

from danlu.data.words import is_chinese, num_units


def split(text: str, *, limit: int | None = None) -> list[str]:
    """Sentences in order. A text of ``limit`` characters without a final mark was cut off: its last piece goes."""
    pieces = [piece.strip() for piece in _BORDER.split(text) if piece and piece.strip()]
    if limit is not None and len(text) >= limit and pieces and not _FINAL.search(text):
        pieces.pop()
    return pieces


def about_product(text: str, *, limit: int | None = None) -> list[str]:
    """The sentences that describe the product; of a sentence about something else, its clauses that do."""
    found: list[str] = []
    for sentence in split(text, limit=limit):
        if describes_product(sentence):
            found.append(sentence)
        elif not _CONDITION.match(sentence):
            found += [clause for clause in _CLAUSE.split(sentence)[1:] if describes_product(clause)]
    return found


def describes_product(sentence: str) -> bool:
    """Whether a sentence is about the product rather than about the writer, and says something concrete."""
    if is_chinese(sentence):
        return not _ZH_OTHER.search(sentence) and bool(_ZH_PRODUCT.search(sentence))
    lowered = sentence.lower()
    return not _OTHER.search(lowered) and not _START.match(lowered) and bool(_PRODUCT.search(lowered))


def tidy(sentence: str) -> str:
    """First letter large, single spaces, one final mark; the words stay as they are."""
    text = re.sub(r"\s+", " ", sentence).strip(" -*~•,;:")
    text = re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"([!?])[!?]+", r"\1", text))
    text = re.sub(r"([,;])(?=[A-Za-z])", r"\1 ", text)
    text = _LEADING.sub("", text)
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!。！" else text + ("。" if is_chinese(text) else ".")


def join(sentences: list[str]) -> str:
    """Sentences as one text: a space between Latin ones, none between Chinese ones."""
    text = " ".join(sentences)
    return re.sub(r"(?<=[。！]) ", "", text)


def length(sentence: str) -> int:
    """Words and Han characters of a sentence."""
    return num_units(sentence)


def _words(*alternatives: str) -> str:
    return rf"(?<![a-z0-9'])(?:{'|'.join(alternatives)})(?![a-z0-9])"


_BORDER = re.compile(
    r"(?<=[.!?])[\"')]?\s+|\.{2,}|…+|(?<=[a-z)][.!?])(?=[a-z]{3,})|(?<=[。！？!?])(?![。！？!?\"')])|\n+|;\s+| - | -- ?"
    r"|,?\s+(?:but|although|though|however|except),?\s+"
)
_CONDITION = re.compile(
    r"\W*(?:if|when|although|though|because|since|unless|even|while|as|with)(?![a-z])", re.IGNORECASE
)
_CLAUSE = re.compile(
    r"(?:,(?:\s+(?:and|so|as))?|\s+and)\s+(?=(?:the|it|it's|it is|its|this|these|they)\s)|(?<=[^0-9，]{4})，",
    re.IGNORECASE,
)
_FINAL = re.compile(r"[.!?。！？\"')]\s*\Z")
_LEADING = re.compile(r"\A(?:and|also|plus|overall|all in all|additionally|lastly)(?:,\s*|\s+)", re.IGNORECASE)

_START = re.compile(
    r"[\"'(]*(?:but|however|although|though|or|because|since|which|except|unless|yet|otherwise|if|when|love|loved|loving"
    r"|like|liked|bought|got|wore|wearing|tried|received|ordered|saw|went|wish|hope|hoping|thought|think|thinking"
    r"|normally|usually|typically|first|second|then|so happy|so glad|thanks?|sorry|bottom line|update|edit|pros|cons"
    r"|note|fyi|btw|that said|having said|can't|cannot|couldn't|don't|highly|would|will|worth|buy"
    r"|he|she|they say|one reviewer|said|says|same|other|another|even though|not sure|only)(?![a-z])"
)
_NOT_COPY = (
    # the writer, the reader, single persons
    r"""
    i i'm i'd i've i'll im ive id me my mine myself we we're our ours us you you'd you'll you're you've your yours
    yourself ya she her he his him they're they've
    """,
    # people around the writer
    r"""
    husband hubby boyfriend fiance daughters? sons? mom mother sister friends? coworkers? girls? guys ladies lady
    everyone everybody someone anyone strangers? woman women moms?
    """,
    # buying, shipping, price
    r"""
    bought buy buying order ordered ordering purchas(?:e|ed|es|ing) return(?:s|ed|ing)? receiv(?:e|ed|ing)
    arriv(?:e|ed|es) shipp(?:ed|ing) shipping mail package deliver(?:y|ed) sales? clearance discount(?:ed)? coupon
    pric(?:e|ed|es|ey|y) priced cost(?:s|ly)? money expensive cheap(?:er|ly)? inexpensive afford(?:able)? worth deal
    bucks dollars stores? shop(?:ping|ped)? online on_line website site web catalog(?:ue)? retailers?
    anthro(?:pologie)? brands? maeve pilcro stock sold available exchang(?:e|ed|ing) keep(?:er|ing|s)? kept refund
    tags? sold_out backorder(?:ed)? fitting_room dressing_room hanger rack try tried trying snag(?:ged)?
    grab(?:bed)? snatch(?:ed)? closet wardrobe_staple_for got getting gotten went going_back sent send take_note
    """,
    # what others say, pictures, expectations
    r"""
    reviews? reviewers? reviewed comments? others said says? stated mentioned advertised described description
    pictur(?:e|es|ed) pics? photos?(?:graph(?:s|ed)?)? image models? in_person real_life in_reality compliments?
    stars? shown show_up expected expecting expectations? surpris(?:e|ed|ing) see_how thought imagined? appears?
    supposed
    """,
    # feelings and recommendations
    r"""
    love[ds]? loving ador(?:e|es|ed|ing) recommend(?:ed)? happy glad obsessed thrilled excited pleased satisfied
    impressed wow omg lol haha yay ugh wish hope(?:fully|ing)? wait favorites? fav want(?:ed|ing)? need(?:ed)?
    feel_like felt think guess know believe admit honest(?:ly)? personally opinion must_have go_for_it
    don't_hesitate perfect_for_me
    """,
    # faults, and bodies that it does not suit
    r"""
    unfortunately ridiculous(?:ly)? panty them showed a_(?:bit|little|tad)_on_the disappoint(?:ed|ing|ment)? but
    however although though problems? issues? complain(?:t|ts|ing)? gripe downside downfall drawback negatives? con
    cons caveat concern(?:ed|s)? worr(?:y|ied|ies) hate[ds]? dislike[ds]? weird(?:ly)? odd(?:ly)? strange(?:ly)?
    awkward(?:ly)? ugly bad(?:ly)? poor(?:ly)? terrible awful horrible unflattering frumpy dowdy matronly sloppy
    shapeless sack tent muumuu potato pregnan(?:t|cy) maternity nursing itch(?:y|es) scratchy rough stiff
    shr(?:ink|inks|ank|unk|inkage|inking) pill(?:s|ed|ing)? fad(?:e|es|ed|ing) snag(?:s|ging)? rip(?:s|ped|ping)?
    tear(?:s|ing)? torn holes? fell_apart fall_apart falling_off unravel(?:s|ed|ing)? defect(?:s|ive)? flaw(?:s|ed)?
    wrinkl(?:e|es|ed|y|ing) stain(?:s|ed)? smell(?:s|ed)? too(?!_*[.!,]|$) unless except overwhelm(?:s|ed|ing)?
    swallow(?:s|ed)? drown(?:s|ed|ing)? gap(?:s|es|ed|ing)? pucker(?:s|ed|ing)? bunch(?:es|ed|ing|y)? bulk(?:y|ier)?
    bulg(?:e|es|ing) show(?:s|ed|ing)?_every bra bras bust busty chest(?:ed)? boobs? hourglass curvy tummy belly
    stomach thighs? butt bum rear broad pear muffin body_type weight_loss no_stretch no_give safety_pin
    alter(?:ed|ations?)? hem_it hemmed tailor not cannot nothing freaking isn't aren't wasn't weren't doesn't don't
    didn't won't wouldn't can't couldn't shouldn't hardly barely never lacks? lacking
    """,
    # sizes tried, and what was so once
    r"""
    xx?s x?x?l sm med sz mediums? size_(?:small|medium|large|[0-9]+)
    (?:a|the|in|my)_(?:small|large|smaller|larger|petite|regular|usual)(?:_size)?(?=_(?:fit|is|was|and|in|or|work|for|would|will|instead)|[.,!)]|$)
    usual_size normal_size regular_size next_size sizes sized sizing
    last_(?:year|week|month|summer|winter|fall|spring|night) yesterday today tomorrow tonight birthday ago
    this_(?:morning|week|weekend|year) wore worn_it washed was were had did ran came made_it looked fell turned_out
    been
    """,
)
"""Words that rule a sentence out, as pieces of a pattern: white space parts them, _ stands for a space."""

_OTHER = re.compile(
    "|".join(
        (
            r"[?@$#*=+]|:\)|:\(|\[[A-Z]+\]",
            r"[0-9]\s*(?:'|\"|ft|feet|foot|inch|lb|pound|cm|kg|year|yr|%|-?[a-d]{1,3}(?![a-z]))",
            r"(?<![0-9/])(?:[0-9]{2,}|[0-24-9])(?![0-9/])",  # sizes and measures of a body; 3/4 sleeves may stay
            *(_words(*(word.replace("_", " ") for word in group.split())) for group in _NOT_COPY),
        )
    )
)
_GARMENT = (
    r"dress(?:es)?|tops?|shirts?|blouses?|tees?|t-shirts?|tanks?|camis?|sweaters?|cardigans?|pullovers?|sweatshirts?|hoodies?"
    r"|jackets?|coats?|vests?|blazers?|ponchos?|capes?|kimonos?|jeans?|pants?|trousers?|leggings?|shorts?|skirts?|skorts?"
    r"|rompers?|jumpsuits?|overalls|swimsuits?|bikinis?|one piece|suits?|robes?|pajamas?|nightgowns?|slips?|bodysuits?"
    r"|tunics?|socks?|tights|garments?|pieces?|outfits?|gowns?|joggers?|culottes|chinos|maxi|midi|henleys?|turtlenecks?"
)
_PART = (
    r"fabrics?|materials?|colou?rs?|patterns?|prints?|cuts?|fits?|fitting|lengths?|sleeves?|necklines?|collars?|hems?|hemline|waist"
    r"|waistband|pockets?|buttons?|zippers?|seams?|stitching|details?|detailing|designs?|styles?|styling|silhouettes?|quality"
    r"|drapes?|textures?|straps?|shoulders?|back|bodice|lining|lined|embroidery|lace|ruffles?|pleats?|trim|belts?|hood"
    r"|cuffs?|ties?|knit|weave|shape|layers?|tones?|shades?|elastic|stretch|rise|wash|comfort|made|construction|look|feel"
)
_PRODUCT = re.compile(_words(_GARMENT, _PART))
_ZH_OTHER = re.compile(
    "我|咱|俺|你|您|她|他|老公|老婆|妈|姐|妹|朋友|同事|闺蜜|女儿|儿子|买|购|下单|快递|物流|发货|客服|卖家|店家|商家|店铺|收到|退|换货"
    "|价格|便宜|贵|性价比|优惠|活动|图片|实物|照片|模特|评价|评论|好评|差评|斤|公分|身高|体重|推荐|喜欢|满意|后悔|失望"
    "|但是|不过|可惜|就是有点|色差|掉色|起球|异味|线头|缩水|问题|瑕疵|不好|不值|太[大小长短薄厚]|吗|呢|？|\\?|\\d+码"
)
_ZH_PRODUCT = re.compile(
    "裙|衣|裤|衫|外套|大衣|毛衣|卫衣|T恤|背心|马甲|风衣|羽绒服|面料|布料|材质|料子|质地|做工|领|袖|腰|版型|款式|颜色|色|图案|花纹"
    "|设计|剪裁|口袋|拉链|扣|裙摆|下摆|弹性|手感|垂感|舒适|透气|柔软|百搭|修身|显瘦|宽松"
)
