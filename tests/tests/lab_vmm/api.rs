//! The VMM's API, asked on the host through its socket.

use serde_json::{Value, json};

use crate::harness::Lab;

impl Lab {
    /// Sends a request and gives status and body of the answer.
    pub fn request(&mut self, name: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.host.write_file("/run/request", request.as_bytes()).unwrap();
        let answer = self.must(&format!("socat -t 50 - UNIX-CONNECT:/run/vm/{name}/api </run/request"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("VM {name}: {method} {path}: {answer:?}"));
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    pub fn get(&mut self, name: &str, path: &str) -> Value {
        let (status, body) = self.request(name, "GET", path, None);
        assert_eq!(status, 200, "VM {name}: GET {path}: {body}");
        body
    }

    /// A request that changes something and has to succeed.
    pub fn change(&mut self, name: &str, method: &str, path: &str, body: &Value) {
        let (status, answer) = self.request(name, method, path, Some(body));
        assert_eq!(status, 204, "VM {name}: {method} {path} {body}: {answer}");
    }

    /// A request that has to be refused; gives what the fault says.
    pub fn refused(&mut self, name: &str, method: &str, path: &str, body: &Value) -> String {
        let (status, answer) = self.request(name, method, path, Some(body));
        assert_eq!(status, 400, "VM {name}: {method} {path} {body}: {answer}");
        answer["fault_message"].as_str().unwrap_or_default().to_owned()
    }

    pub fn pause(&mut self, name: &str) {
        self.change(name, "PATCH", "/vm", &json!({ "state": "Paused" }));
        assert_eq!(self.get(name, "/")["state"], "Paused");
    }

    pub fn resume(&mut self, name: &str) {
        self.change(name, "PATCH", "/vm", &json!({ "state": "Resumed" }));
        assert_eq!(self.get(name, "/")["state"], "Running");
    }

    /// What the VMM has counted since its start.
    pub fn counted(&mut self, name: &str, group: &str, counter: &str) -> u64 {
        self.change(name, "PUT", "/actions", &json!({ "action_type": "FlushMetrics" }));
        let lines = self.must(&format!("cat /run/vm/{name}/metrics"));
        let count = |line: &str| {
            let line: Value = serde_json::from_str(line).expect(line);
            line[group][counter].as_u64().unwrap_or_else(|| panic!("no {group}.{counter} in {line}"))
        };
        lines.lines().map(count).sum()
    }
}
