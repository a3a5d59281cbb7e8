//! Writes binary lists for tests, as Linux does.

use crate::key::Bank;

/// A list in the making.
#[derive(Clone, Default)]
pub(crate) struct ListBuilder {
    pub entries: Vec<Vec<u8>>,
}

impl ListBuilder {
    /// An entry of template ima-sig without signature, for a file with this content.
    pub fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.entry("ima-sig", Bank::Sha256, &Bank::Sha256.hash(content), name.as_bytes(), &[b""])
    }

    pub fn entry(&mut self, template: &str, bank: Bank, digest: &[u8], name: &[u8], more: &[&[u8]]) -> &mut Self {
        let data = template_data(bank.name(), digest, name, more);
        self.raw(10, &Bank::Sha1.hash(&data), template, &data)
    }

    pub fn violation(&mut self, name: &str) -> &mut Self {
        let data = template_data("sha256", &[0; 32], name.as_bytes(), &[b""]);
        self.raw(10, &[0; 20], "ima-sig", &data)
    }

    pub fn raw(&mut self, pcr: u32, template_digest: &[u8], template: &str, data: &[u8]) -> &mut Self {
        let name_size = u32::try_from(template.len()).unwrap().to_le_bytes();
        let data_size = u32::try_from(data.len()).unwrap().to_le_bytes();
        let entry =
            [&pcr.to_le_bytes()[..], template_digest, &name_size, template.as_bytes(), &data_size, data].concat();
        self.entries.push(entry);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.entries.concat()
    }
}

pub(crate) fn template_data(algorithm: &str, digest: &[u8], name: &[u8], more: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    let digest = [algorithm.as_bytes(), b":\0", digest].concat();
    let name = [name, b"\0"].concat();
    for field in [&digest[..], &name].into_iter().chain(more.iter().copied()) {
        data.extend(u32::try_from(field.len()).unwrap().to_le_bytes());
        data.extend(field);
    }
    data
}
