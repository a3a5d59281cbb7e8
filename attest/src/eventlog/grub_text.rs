//! Tells GRUB's commands from the command lines that it gives kernels, by the measured texts alone.
//!
//! GRUB writes `grub_cmd: ` or `kernel_cmdline: ` before a text (`grub-core/commands/tpm.c`). No digest covers that, so what a
//! text is must follow from the text and its place:
//!
//! - A command is measured when it is run, as its words joined by blanks, without any quoting (`script/execute.c`,
//!   `grub_script_execute_cmdline`). Its first word is a command, a function, `!`, or an assignment.
//! - A kernel's command line is measured by `grub_create_loader_cmdline` (`lib/cmdline.c`): the same words from the file's name
//!   on, with `"` around words that have blanks in them and `\\` before quotes. Nothing else is measured into PCR 8 between the
//!   command `linux` and this line.
//! - A file's name (`kern/file.c`, `grub_file_open`) begins with `(device)` or with `/`. Without `/`, on a disk, it is a block
//!   list, `2048+20000` or `+1,10+5` (`kern/fs.c`). Only on network devices can it begin with anything, also as a command does:
//!   `set root=tftp,10.0.0.1` and `linux echo init=/bin/sh` measure a line that looks like the command `echo`.
//!
//! So a text is a command only if it begins as one, and does not repeat the words of a loader's command just before it.

/// Whether GRUB measures a command's words once more behind it, as a command line.
fn is_loader(command: &str) -> bool {
    matches!(
        command,
        "linux"
            | "linux16"
            | "linuxefi"
            | "multiboot"
            | "multiboot2"
            | "module"
            | "module2"
            | "xen_hypervisor"
            | "xen_linux"
            | "xen_module"
            | "plan9"
            | "xnu_kernel"
            | "xnu_kernel64"
            | "kfreebsd"
            | "knetbsd"
            | "kopenbsd"
            | "knetbsd_module"
    )
}

/// What the kernel reads of a command line as GRUB measures it, behind the kernel's path. `None` if no path stands there, or
/// one in which the kernel could see arguments, the end of a word or a quote: GRUB passes some of these on.
pub(crate) fn kernel_arguments(line: &str) -> Option<&str> {
    let (path, arguments) = line.split_once(' ').unwrap_or((line, ""));
    let is_plain = |c: char| matches!(c, '!'..='~') && !matches!(c, '"' | '\'' | '\\' | '*' | '?' | '[');
    (path.starts_with(['/', '(']) && path.chars().all(is_plain)).then_some(arguments)
}

/// Whether a text begins as a command of GRUB's does: with a name, an assignment, or `[`, `!` and `.`.
pub(crate) fn is_command(text: &str) -> bool {
    let text = text.as_bytes();
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let begins = text.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    let end = text.iter().find(|byte| !is_of_name(byte));
    begins && matches!(end, None | Some(b' ' | b'='))
        || matches!(text, [b'[' | b'!' | b'.'] | [b'[' | b'!' | b'.', b' ', ..])
}

/// The words that a loader's command is given: what GRUB then measures as a command line.
pub(crate) fn loader_arguments(command: &str) -> Option<&str> {
    let command = without_negation(command);
    // Most commands begin with another letter. Names are short: a search by words of memory costs more.
    let begins = matches!(command.as_bytes().first(), Some(b'l' | b'm' | b'x' | b'p' | b'k'));
    let blank = command.bytes().take_while(|_| begins).position(|byte| byte == b' ')?;
    let (name, arguments) = command.split_at_checked(blank)?;
    is_loader(name).then(|| arguments.strip_prefix(' '))?
}

/// The load options that the command `chainloader` gives an image: its words behind the file's name. GRUB measures them
/// nowhere else, and an image that is a kernel takes them for its command line (`loader/efi/chainloader.c`).
pub(crate) fn load_options(command: &str) -> Option<&str> {
    let arguments = without_negation(command).strip_prefix("chainloader ")?;
    let (_, options) = arguments.split_once(' ')?;
    (!options.trim_matches(' ').is_empty()).then_some(options)
}

/// A text without what GRUB adds when it makes a command line of words.
pub(crate) fn without_quoting(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|c| !matches!(c, '"' | '\'' | '\\'))
}

fn without_negation(command: &str) -> &str {
    command.strip_prefix("! ").unwrap_or(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n94_only_what_begins_as_a_command_is_one() {
        for command in [
            "linux /vmlinuz",
            "set root=hd0",
            "[ -f /x ]",
            "! linux /a",
            ". /grub.cfg",
            "search.fs_uuid x",
            "a=b",
            "boot",
            "_f",
        ] {
            assert!(is_command(command), "{command}");
        }
        for file in [
            "/vmlinuz",
            "(hd0,gpt2)/vmlinuz",
            "(hd0)+1",
            "2048+20000",
            "+1",
            "0x800+20000 quiet",
            "\"/a b\" x",
            "",
            "{",
            "-x",
            "=a",
        ] {
            assert!(!is_command(file), "{file}");
        }
    }

    #[test]
    fn n94_a_loaders_words_are_the_line_that_follows() {
        assert_eq!(loader_arguments("linux vmlinuz quiet"), Some("vmlinuz quiet"));
        assert_eq!(loader_arguments("! linuxefi echo x"), Some("echo x"));
        assert_eq!(loader_arguments("echo linux x"), None);
        assert_eq!(loader_arguments("linux"), None);
        assert!(without_quoting("\"a b\" c\\\"d").eq("a b cd".chars()));
        assert_eq!(load_options("chainloader /EFI/x.efi"), None);
        assert_eq!(load_options("chainloader /EFI/x.efi init=/bin/sh quiet"), Some("init=/bin/sh quiet"));
    }
}
