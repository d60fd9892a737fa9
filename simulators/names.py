"""Chinese names for an invented district. Streets and towns are Pidu's real, public ones; people are made up.

Phone numbers are `100` and eight digits: eleven digits like a mobile number, in a range that is not assigned
to anyone (mobile numbers in China start with 13 to 19), so a demo can never ring a stranger.
"""

from __future__ import annotations

from random import Random

__all__ = ["COMMUNITY_STEMS", "DEDICATED", "GIVEN", "ROADS", "STREETS", "SURNAMES", "person", "phone"]

# name, kind, latitude, longitude (the seat's rough position, WGS-84), weight of area, weight of population
STREETS: tuple[tuple[str, str, float, float, float, float], ...] = (
    ("郫筒", "街道", 30.808, 103.888, 0.75, 2.6),
    ("犀浦", "街道", 30.757, 103.975, 0.65, 2.3),
    ("红光", "街道", 30.775, 103.935, 0.85, 1.7),
    ("安靖", "街道", 30.765, 104.020, 0.70, 1.4),
    ("团结", "街道", 30.815, 103.975, 1.15, 1.5),
    ("德源", "街道", 30.785, 103.850, 0.95, 1.0),
    ("友爱", "镇", 30.800, 103.795, 1.20, 1.0),
    ("三道堰", "镇", 30.868, 103.930, 0.80, 0.7),
    ("古城", "镇", 30.898, 103.915, 0.80, 0.6),
    ("唐元", "镇", 30.890, 103.865, 0.95, 0.7),
    ("新民场", "镇", 30.872, 103.825, 0.95, 0.6),
    ("安德", "镇", 30.868, 103.780, 1.20, 1.0),
    ("花园", "镇", 30.905, 103.795, 0.75, 0.5),
    ("唐昌", "镇", 30.925, 103.750, 1.45, 1.1),
)

_HEADS = """
望丛 书院 双柏 菠萝 奎星 蜀都 鹃城 杜鹃 南城 北门 东林 西林 梨花 桂花 梅园 竹园
荷塘 银杏 香樟 清水 柏条 府河 沱江 走马 石堤 横山 平乐 永安 长乐 太和 万寿 福昌
金星 红星 新胜 先锋 战旗 青杠 团结 友谊 花牌 白鹤 凤凰 龙吟 玉龙 青龙 石羊 土地
雍渡 两河 三元 四平 五桂 六合 七里 八角 九里 千秋 百里 万福
"""
_STEM_HEADS = _HEADS.split()
_STEM_TAILS = "苑桥坝堰湾林园里岗庙"
COMMUNITY_STEMS: tuple[str, ...] = (
    *_STEM_HEADS,
    *(head + tail for tail in _STEM_TAILS for head in _STEM_HEADS if head[-1] != tail),
)

_ROADS = """
望丛东路 望丛西路 何公路 杜鹃路 鹃城路 蜀信路 红光大道 犀和路 校园路 天骄路 西源大道
成灌路 郫花路 郫温路 一环路 二环路 书院街 奎星楼街 北大街 南大街 东大街 西大街
中信大道 郫都大道 百草路 兴业路 创业路 泰山大道 石牛路 国宁路 双铁路 梨园路 金粮路
柏木路 沱江路 府河路 走马河路 清江路 银杏街 桂花巷 梅花巷 文化街 团结大道 学院街
铁门街 老城墙街 川菜路 豆瓣街 永兴路 永安路 安唐路 沙西线 三古路 古唐路 花园大道
友谊路 迎宾大道
"""
ROADS: tuple[str, ...] = tuple(_ROADS.split())

# What a dedicated (专属) grid is made for: name pattern, kind of place, how its cameras are called.
DEDICATED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("{stem}小学", ("校门口", "操场东侧", "后门")),
    ("{stem}中学", ("正门", "西门", "运动场")),
    ("{street}人民医院", ("急诊入口", "门诊大厅外", "停车场")),
    ("{stem}农贸市场", ("东门", "中心通道", "卸货区")),
    ("{street}客运站", ("进站口", "出站口", "广场")),
    ("{stem}商业广场", ("下沉广场", "北入口", "步行街")),
    ("{stem}工业园", ("大门", "二号厂房外", "货运通道")),
    ("{stem}公园", ("南门", "湖边步道", "健身区")),
)

SURNAMES: tuple[str, ...] = tuple(
    "王李张刘陈杨黄赵周吴徐孙朱马胡郭林何高罗郑梁谢宋唐许韩冯邓曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕丁任卢姚沈钟姜崔谭陆范汪廖石金韦贾夏付方邹熊白孟秦邱侯江尹薛闫段雷龙黎史陶贺毛郝顾龚邵万覃武钱戴严莫孔向常汤康易乔"
)
GIVEN: tuple[str, ...] = tuple(
    "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超霞平刚桂英华建国玉兰志红梅琴春燕文博宇浩然欣怡子轩雨桐佳慧俊峰海波立新秀珍国庆小东晓林成龙永福光荣德胜家齐思源"
)


def person(random: Random) -> str:
    """A made-up name: one surname, one or two given characters."""
    given = random.choice(GIVEN) + (random.choice(GIVEN) if random.random() < 0.72 else "")
    return random.choice(SURNAMES) + given


def phone(random: Random) -> str:
    """Eleven digits that belong to nobody."""
    return f"100{random.randrange(10**8):08d}"
