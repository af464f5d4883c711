/*
 * The guest's side of the laboratory: runs commands that arrive on a serial line and sends back what they print.
 * It is process 1 of the guest, so it also reaps what others leave behind.
 *
 * Every message is a line "@KIND ID LENGTH" followed by LENGTH bytes.
 *   to the guest:   @run ID n  command for /bin/sh      @kill ID 0   SIGKILL to its process group    @ping ID 0
 *   from the guest: @hello 0 0 once after start    @pong ID 0    @out ID n  output    @end ID n  exit status in decimal
 * The status is the exit code, or 128 + the signal's number. Output comes before the end of its command.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define JOBS 64
#define COMMAND_MAX 65536

static struct job {
	pid_t pid; /* 0: the slot is free */
	int out;
	unsigned long id;
} jobs[JOBS];

static int line_fd;
static int wake_pipe[2];

static void write_all(const char *p, size_t n)
{
	while (n) {
		ssize_t w = write(line_fd, p, n);
		if (w < 0) {
			struct pollfd ready = { .fd = line_fd, .events = POLLOUT };
			if (errno == EAGAIN)
				poll(&ready, 1, -1);
			else if (errno != EINTR)
				exit(1);
			continue;
		}
		p += w;
		n -= (size_t)w;
	}
}

static void send_message(const char *kind, unsigned long id, const char *body, size_t len)
{
	char head[64];
	int n = snprintf(head, sizeof(head), "@%s %lu %zu\n", kind, id, len);

	write_all(head, (size_t)n);
	write_all(body, len);
}

static void send_status(unsigned long id, int status)
{
	char text[16];
	int n = snprintf(text, sizeof(text), "%d", status);

	send_message("end", id, text, (size_t)n);
}

static void child_ended(int signal)
{
	int saved = errno;

	(void)signal;
	(void)!write(wake_pipe[1], "", 1);
	errno = saved;
}

/* Sends on what a job has printed; returns false at the end of its output. */
static int drain(struct job *job)
{
	char buffer[4096];
	ssize_t n = read(job->out, buffer, sizeof(buffer));

	if (n > 0)
		send_message("out", job->id, buffer, (size_t)n);
	if (n == 0)
		errno = 0;
	return n > 0 || (n < 0 && errno == EINTR);
}

static void start(unsigned long id, const char *command)
{
	struct job *job = jobs;
	int ends[2];

	while (job < jobs + JOBS && job->pid)
		job++;
	if (job == jobs + JOBS || pipe2(ends, O_CLOEXEC) < 0) {
		send_status(id, 126);
		return;
	}
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	job->pid = fork();
	if (job->pid < 0) {
		job->pid = 0;
		close(ends[0]);
		close(ends[1]);
		send_status(id, 126);
		return;
	}
	if (job->pid == 0) {
		int null = open("/dev/null", O_RDONLY);
		setsid();
		signal(SIGPIPE, SIG_DFL);
		dup2(null, 0);
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	job->out = ends[0];
	job->id = id;
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (struct job *job = jobs; job < jobs + JOBS; job++) {
			if (job->pid != pid)
				continue;
			while (drain(job))
				;
			close(job->out);
			job->out = -1;
			job->pid = 0;
			send_status(job->id, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		}
	}
}

/* Obeys the complete messages at the start of the buffer; returns the number of bytes used. */
static size_t obey(char *buffer, size_t len)
{
	size_t used = 0;

	while (used < len) {
		char *at = buffer + used, *end, kind[8];
		unsigned long id;
		size_t body, head;

		if (*at != '@') { /* noise before the first message */
			used++;
			continue;
		}
		end = memchr(at, '\n', len - used);
		if (!end)
			break;
		*end = 0;
		if (sscanf(at, "@%7s %lu %zu", kind, &id, &body) != 3 || body >= COMMAND_MAX) {
			*end = '\n';
			used++;
			continue;
		}
		*end = '\n';
		head = (size_t)(end + 1 - at);
		if (len - used < head + body)
			break;
		if (!strcmp(kind, "run")) {
			char *command = strndup(end + 1, body);
			start(id, command);
			free(command);
		} else if (!strcmp(kind, "kill")) {
			for (struct job *job = jobs; job < jobs + JOBS; job++)
				if (job->pid && job->id == id)
					kill(-job->pid, SIGKILL);
		} else if (!strcmp(kind, "ping")) {
			send_message("pong", id, "", 0);
		}
		used += head + body;
	}
	return used;
}

int main(int argc, char **argv)
{
	static char buffer[2 * COMMAND_MAX];
	size_t filled = 0;
	struct termios raw;

	line_fd = open(argc > 1 ? argv[1] : "/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (line_fd < 0 || pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK) < 0) {
		perror("agent");
		return 1;
	}
	if (tcgetattr(line_fd, &raw) == 0) {
		cfmakeraw(&raw);
		raw.c_cflag |= CLOCAL | CREAD;
		cfsetspeed(&raw, B115200);
		tcsetattr(line_fd, TCSANOW, &raw);
	}
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, child_ended);
	send_message("hello", 0, "", 0);
	for (;;) {
		struct pollfd fds[JOBS + 2] = { { .fd = line_fd, .events = POLLIN }, { .fd = wake_pipe[0], .events = POLLIN } };
		char bin[64];

		for (int i = 0; i < JOBS; i++)
			fds[i + 2] = (struct pollfd){ .fd = jobs[i].pid ? jobs[i].out : -1, .events = POLLIN };
		if (poll(fds, JOBS + 2, -1) < 0 && errno != EINTR)
			return 1;
		for (int i = 0; i < JOBS; i++) {
			/* A job may close its output and live on: stop looking at it, its end comes with SIGCHLD. */
			if (jobs[i].pid && jobs[i].out >= 0 && fds[i + 2].revents && !drain(&jobs[i]) && errno != EAGAIN) {
				close(jobs[i].out);
				jobs[i].out = -1;
			}
		}
		while (read(wake_pipe[0], bin, sizeof(bin)) > 0)
			;
		reap();
		if (fds[0].revents & POLLIN) {
			ssize_t n = read(line_fd, buffer + filled, sizeof(buffer) - filled);
			if (n > 0) {
				size_t used;
				filled += (size_t)n;
				used = obey(buffer, filled);
				memmove(buffer, buffer + used, filled - used);
				filled -= used;
				if (filled == sizeof(buffer)) /* a message that cannot be: start afresh */
					filled = 0;
			}
		}
	}
}
