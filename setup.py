"Installs subpixel_nb from what settings.ini says; nothing is stated twice."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here / 'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=settings['author'],
    license='Apache-2.0',
    keywords=settings['keywords'],
    python_requires=f'>={settings["min_python"]}',
    packages=[settings['lib_path']],
    install_requires=settings['requirements'].split(),
    extras_require={'video': settings['video_requirements'].split(),
                    'dev': f"{settings['dev_requirements']} {settings['video_requirements']}".split()},
)
