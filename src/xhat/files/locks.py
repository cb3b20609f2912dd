"""Locks of the operating system on open files: they end with the process that has them, however it ends."""

import errno
import sys

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system without locks answers, some network file systems among them."""

if sys.platform == "win32":
    import msvcrt

    def lock(file: int) -> None:
        """Lock an open file, or say at once that another process has it.

        Raises:
            BlockingIOError: another process has it.
            OSError: with an error number among `NO_LOCKS`, where there are no locks.
        """
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from None

else:
    import fcntl

    def lock(file: int) -> None:
        """Lock an open file, or say at once that another process has it.

        Raises:
            BlockingIOError: another process has it.
            OSError: with an error number among `NO_LOCKS`, where there are no locks.
        """
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_if_possible(file: int) -> bool:
    """As `lock`; whether the file system has locks at all.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        lock(file)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True
